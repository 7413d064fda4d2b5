"""A run is a fork of a warm interpreter: it must look like a start of its own, and nothing may pass to the next."""

import textwrap

import pytest

from sandbox.contract import Limits, RunResult, Status
from tests.sandbox.conftest import SandboxServer

pytestmark = pytest.mark.integration


def run(sandbox: SandboxServer, code: str, **more: dict[str, bytes]) -> RunResult:
    return sandbox.run(textwrap.dedent(code), **more)  # type: ignore[arg-type]


def test_the_code_is_main_and_argv_path_and_file_are_a_script_s(sandbox: SandboxServer) -> None:
    code = """
    import __main__, sys
    secret = 1
    print(__name__, __file__, sys.argv, sys.path[0], __main__.secret, sys.flags.isolated, sys.orig_argv[1:])
    """
    assert run(sandbox, code).stdout == "__main__ /box/main.py ['main.py'] /box 1 0 ['main.py']\n"


def test_what_a_run_changes_in_the_interpreter_is_gone_for_the_next(sandbox: SandboxServer) -> None:
    change = """
    import builtins, json, os, signal, sys, threading
    builtins.len = lambda _: 7
    json.dumps = None
    os.environ["LEFT"] = "x"
    os.nice(5)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.setrecursionlimit(50)
    sys.left = True
    """
    look = """
    import json, os, signal, sys
    print(len("ab"), json.dumps([]), os.environ.get("LEFT"), os.nice(0), signal.getsignal(signal.SIGTERM) == 0,
          sys.getrecursionlimit(), hasattr(sys, "left"))
    """
    before = run(sandbox, look).stdout
    for _ in range(2 * sandbox.health().slots):
        assert run(sandbox, change).status == Status.OK
        assert run(sandbox, look).stdout == before


def test_nothing_of_the_sandbox_is_imported(sandbox: SandboxServer) -> None:
    code = "import sys\nprint([name for name in sys.modules if name.startswith('sandbox')])\nimport sandbox"
    result = run(sandbox, code)
    assert result.stdout == "[]\n"
    assert "ModuleNotFoundError" in result.stderr


def test_a_file_beside_the_code_wins_over_a_warm_module(sandbox: SandboxServer) -> None:
    code = "import heapq, random, sandbox\nprint(heapq.MINE, random.MINE, sandbox.MINE)"
    files = {"heapq.py": b"MINE = 1", "random/__init__.py": b"MINE = 2", "sandbox.py": b"MINE = 3"}
    assert run(sandbox, code, files=files).stdout == "1 2 3\n"


def test_random_numbers_differ_from_run_to_run(sandbox: SandboxServer) -> None:
    assert len({run(sandbox, "import random; print(random.random())").stdout for _ in range(4)}) == 4


def test_threads_are_awaited_then_exit_handlers_run_then_globals_go(sandbox: SandboxServer) -> None:
    code = """
    import atexit, sys, threading, time
    class Last:
        def __del__(self):
            print("last")
    last = Last()
    atexit.register(print, "handler")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    print("main")
    sys.exit(3)
    """
    result = run(sandbox, code)
    assert (result.exit_code, result.stdout) == (3, "main\nthread\nhandler\nlast\n")


def test_an_exception_hook_of_the_code_is_used(sandbox: SandboxServer) -> None:
    result = run(sandbox, "import sys\nsys.excepthook = lambda *a: print('mine', a[0].__name__)\n1/0")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "mine ZeroDivisionError\n", "")


def test_the_zygote_cannot_be_slowed_down(sandbox: SandboxServer) -> None:
    code = """
    import ctypes, os
    libc = ctypes.CDLL(None, use_errno=True)
    cpus = ctypes.c_ulong(1)
    print(libc.setpriority(0, 1, 19), libc.setpriority(2, 0, 19), libc.sched_setaffinity(1, 8, ctypes.byref(cpus)),
          libc.syscall(251 if os.uname().machine == "x86_64" else 30, 1, 1, 3 << 13))
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    """
    assert (run(sandbox, code).status, run(sandbox, code).stdout) == (Status.OK, "-1 -1 -1 -1\n")


def test_many_runs_in_one_slot_stay_right_after_every_kind_of_end() -> None:
    with SandboxServer(arguments=("--slots", "1")) as server:
        for number in range(6):
            assert server.run("while True: pass", limits=Limits(wall_seconds=0.2)).status == Status.TIMEOUT
            assert server.run("import os; os.kill(os.getpid(), 9)").status == Status.KILLED
            assert server.run("while True: print('x' * 9999)").status == Status.OUTPUT
            bomb = server.run("a = []\nwhile True: a.append(bytearray(1 << 20))", limits=Limits(memory_bytes=64 << 20))
            assert bomb.status == Status.MEMORY
            assert server.run(f"print({number})").stdout == f"{number}\n"
        assert server.health().runs_retried == 0
