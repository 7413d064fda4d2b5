"""What a program gets to work with in the sandbox, and what comes back from it."""

import json
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandbox.contract import Limits, MissingReason, RunRequest, Status
from tests.sandbox.conftest import SandboxServer

pytestmark = pytest.mark.integration


def test_a_program_prints_and_ends_well(sandbox: SandboxServer) -> None:
    result = sandbox.run("print(1 + 1)")
    assert (result.status, result.exit_code, result.stdout, result.stderr) == (Status.OK, 0, "2\n", "")
    assert 0 < result.cpu_seconds < 5
    assert 0 < result.wall_seconds < 20
    assert (4 << 20) < result.peak_memory_bytes < (64 << 20)


def test_every_result_names_the_level_of_isolation(sandbox: SandboxServer) -> None:
    assert sandbox.run("pass").isolation == sandbox.health().level


def test_standard_input_reaches_the_program_and_then_ends(sandbox: SandboxServer) -> None:
    result = sandbox.run("import sys\nprint(input() + '|' + sys.stdin.read() + '|')", stdin="one\ntwo ü\nthree")
    assert result.stdout == "one|two ü\nthree|\n"


def test_large_standard_input_arrives_whole(sandbox: SandboxServer) -> None:
    assert sandbox.run("import sys\nprint(len(sys.stdin.read()))", stdin="x" * 3_000_000).stdout == "3000000\n"


def test_files_go_in_and_come_back(sandbox: SandboxServer) -> None:
    code = """
    import helper
    data = open("in/data.bin", "rb").read()
    open("out.bin", "wb").write(data[::-1] + helper.SUFFIX)
    """
    files = {"in/data.bin": bytes(range(256)), "helper.py": b"SUFFIX = b'!'"}
    result = sandbox.run(textwrap.dedent(code), files=files, collect=("out.bin",))
    assert result.files == {"out.bin": bytes(range(256))[::-1] + b"!"}


def test_what_cannot_be_collected_is_named_with_its_reason(sandbox: SandboxServer) -> None:
    code = """
    import os
    os.mkdir("folder")
    os.symlink("/etc/passwd", "link")
    os.symlink("/etc", "etc")
    os.mkfifo("pipe")
    with open("large", "wb") as file:
        file.truncate(20_000_000)
    """
    result = sandbox.run(textwrap.dedent(code), collect=("none", "folder", "link", "etc/passwd", "pipe", "large"))
    assert (result.status, result.files) == (Status.OK, {})
    assert result.files_missing == {
        "none": MissingReason.NOT_FOUND,
        "folder": MissingReason.NOT_A_FILE,
        "link": MissingReason.NOT_A_FILE,
        "etc/passwd": MissingReason.NOT_A_FILE,
        "pipe": MissingReason.NOT_A_FILE,
        "large": MissingReason.TOO_LARGE,
    }


def test_the_runs_of_a_batch_share_the_room_for_what_is_collected(sandbox: SandboxServer) -> None:
    request = RunRequest(code="open('f', 'wb').truncate(5 << 20)", collect=("f",), limits=Limits(wall_seconds=60))
    results = sandbox.run_batch((request,) * 4).results
    assert [result.files_missing for result in results] == [{"f": MissingReason.TOO_LARGE}] * 4
    assert [len(result.files["f"]) for result in sandbox.run_batch((request,) * 3).results] == [5 << 20] * 3


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("import sys; sys.exit(7)", 7),
        ("exit(3)", 3),
        ("raise SystemExit('why')", 1),
        ("1/0", 1),
        ("def f(:", 1),
        ("import os; os._exit(255)", 255),
    ],
)
def test_a_program_that_ends_badly_has_failed_with_its_exit_code(
    sandbox: SandboxServer, code: str, exit_code: int
) -> None:
    result = sandbox.run(code)
    assert (result.status, result.exit_code, result.signal) == (Status.FAILED, exit_code, None)


def test_a_traceback_names_the_line_of_the_code_and_no_path_of_the_host(sandbox: SandboxServer) -> None:
    result = sandbox.run("\n\nraise ValueError('näh')")
    assert 'File "/box/main.py", line 3' in result.stderr
    assert result.stderr.endswith("ValueError: näh\n")
    assert "sandbox/" not in result.stderr


def test_a_crash_is_reported_with_its_signal(sandbox: SandboxServer) -> None:
    result = sandbox.run("import ctypes; ctypes.string_at(1)")
    assert (result.status, result.exit_code, result.signal) == (Status.KILLED, None, 11)
    assert "SIGSEGV" in result.reason


def test_bytes_that_are_no_text_and_nul_and_surrogates_survive_the_way_out(sandbox: SandboxServer) -> None:
    code = r"""
    import sys
    sys.stdout.buffer.write(b"a\0b\xff\xfe")
    sys.stdout.flush()
    sys.stderr.write("\ud800 \0\n")
    print("\ud800")
    """
    result = sandbox.run(textwrap.dedent(code))
    assert (result.status, result.exit_code) == (Status.FAILED, 1)  # a lone surrogate cannot be printed
    assert result.stdout == "a\0b��"
    assert result.stderr.startswith("\\ud800 \0\n")
    assert "UnicodeEncodeError" in result.stderr


def test_nul_in_the_code_fails_the_code(sandbox: SandboxServer) -> None:
    result = sandbox.run("print('seen')\0\nprint('not seen')")
    assert result.status == Status.FAILED
    assert "null bytes" in result.stderr or "SyntaxError" in result.stderr  # which, depends on the Python


def test_lone_surrogates_in_a_request_are_refused_with_the_field(sandbox: SandboxServer) -> None:
    answer = sandbox.client.post(
        "/v1/run", content=b'{"code": "print(\\"\\ud800\\")"}', headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert "body.code" in answer.json()["detail"]


def test_the_same_program_gives_the_same_answer_each_time(sandbox: SandboxServer) -> None:
    outputs = {sandbox.run("print(list({str(i) for i in range(50)}))").stdout for _ in range(3)}
    assert len(outputs) == 1


@pytest.mark.namespaces  # what a container has is up to its image
def test_only_the_standard_library_is_there(sandbox: SandboxServer) -> None:
    result = sandbox.run("import json, sqlite3, asyncio, unittest, decimal\nimport pip")
    assert result.stderr.endswith("ModuleNotFoundError: No module named 'pip'\n")


def test_processes_threads_and_event_loops_work(sandbox: SandboxServer) -> None:
    code = """
    import asyncio, concurrent.futures, multiprocessing, subprocess, sys, tempfile, threading

    def square(number):
        return number * number

    async def later():
        await asyncio.sleep(0.01)
        return "loop"

    if __name__ == "__main__":
        print(asyncio.run(later()))
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            print(list(pool.map(square, range(4))))
        with multiprocessing.Pool(2) as pool:
            print(pool.map(square, range(4)))
        print(subprocess.run([sys.executable, "-c", "print(40 + 2)"], capture_output=True, text=True).stdout.strip())
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"x")
        print("end")
    """
    result = sandbox.run(textwrap.dedent(code))
    assert result.stdout.split("\n") == ["loop", "[0, 1, 4, 9]", "[0, 1, 4, 9]", "42", "end", ""], result.stderr


def test_32_runs_at_once_get_each_its_own_answer(sandbox: SandboxServer) -> None:
    code = "import sys\nopen('mine', 'w').write(sys.stdin.read())\nprint(open('mine').read() * 2)"

    def ask(number: int) -> tuple[str, bytes]:
        result = sandbox.run(code, stdin=f"<{number}>", collect=("mine",))
        return result.stdout, result.files["mine"]

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(32)))
    assert answers == [(f"<{n}><{n}>\n", f"<{n}>".encode()) for n in range(32)]


def test_a_batch_answers_in_its_order_whatever_became_of_each(sandbox: SandboxServer) -> None:
    short = Limits(wall_seconds=0.5)
    requests = (
        RunRequest(code="import time; time.sleep(60)", limits=short),
        RunRequest(code="print('second')"),
        RunRequest(code="raise SystemExit(4)"),
        *[RunRequest(code=f"print({n})") for n in range(6)],
    )
    results = sandbox.run_batch(requests).results
    assert [result.status for result in results[:3]] == [Status.TIMEOUT, Status.OK, Status.FAILED]
    assert [result.stdout for result in results[3:]] == [f"{n}\n" for n in range(6)]


def test_a_program_sees_only_the_environment_it_was_given(sandbox: SandboxServer) -> None:
    seen = json.loads(sandbox.run("import json, os; print(json.dumps(dict(os.environ)))").stdout)
    assert seen["HOME"] == "/box"
    assert not {"BAIT", "SANDBOX_API_KEY", "PYTHONPATH"} & set(seen)
