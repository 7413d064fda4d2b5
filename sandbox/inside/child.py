"""The fork of a zygote that becomes a run: takes its folders, its limits and its files, gives up the rest, and runs the
code.

The code runs in this very interpreter, as `python main.py` would run it: a fresh `__main__`, standard streams of its
own, tracebacks that begin at the code, exit codes and atexit as usual. Another language's program is executed instead.
Only the standard library.
"""

import _imp
import atexit
import contextlib
import gc
import io
import os
import signal
import socket
import sys
import threading
import types
from collections.abc import Iterable
from typing import Final, NoReturn

from sandbox.inside import isolation, judge_solution, judge_tests, kernel, seccomp, weak
from sandbox.inside.wire import Flavour, ForkOrder, Role, Terms, unpack_payload

CHANNEL: Final = 3
"""The open file on which a solution and its tests meet."""

_filter = b""
_forgotten: list[types.ModuleType | None] = []
"""Modules that no import finds any more. Taken apart in a run they would copy the memory it shares with the zygote."""


def prepare(terms: Terms) -> None:
    """Do the work common to all runs once, in the zygote."""
    global _filter
    is_weak = bool(terms.readable)
    signals = not is_weak or weak.keeps_signals_inside()
    _filter = seccomp.assemble(
        kernel.MACHINE,
        signals=signals,
        attributes=not is_weak,
        messages=terms.has_cgroup and terms.owns_user,
        shared_memory=terms.has_cgroup or terms.in_container,  # a container's own limit counts it
    )
    _forget(name for name in list(sys.modules) if name.partition(".")[0] == "sandbox")


def become_run(
    control: socket.socket, proc: int, order: ForkOrder, descriptors: tuple[int, ...], terms: Terms
) -> NoReturn:
    """Be the first process of a run. Sends "box" with the open folder if it is wanted, "started", or "fault:" and why.

    `descriptors` are the payload, standard input, output and error, and perhaps a channel.
    """
    try:
        source = _set_up(control, proc, order, descriptors, terms)
        control.send(b"started")
    except Exception as error:  # noqa: BLE001 -- any error means that the code was not run
        control.send(f"fault:{type(error).__name__}: {error}".encode()[:4000])
        os._exit(126)
    control.detach()
    channel = descriptors[4:]
    if channel:
        os.dup2(channel[0], CHANNEL)
    kernel.close_from(3 + len(channel))
    if order.argv:
        _execute(order.argv)
    _become_interpreter(terms)
    folder = os.getcwd()
    path = f"{folder}/{order.main_file}"
    match order.role:
        case Role.CODE:
            _run_python(source, path)
        case Role.SOLUTION:
            judge_solution.serve(source, path, CHANNEL)
        case Role.TESTS | Role.LIVE_TESTS:
            judge_tests.judge(folder, CHANNEL, live=order.role == Role.LIVE_TESTS)


def _set_up(control: socket.socket, proc: int, order: ForkOrder, descriptors: tuple[int, ...], terms: Terms) -> bytes:
    payload, *streams = descriptors
    os.setsid()
    kernel.die_with_parent(signal.SIGKILL)
    kernel.set_dumpable(True)  # or our own entry in /proc would be closed to us; no other process lives here yet
    isolation.write_at(proc, "self/oom_score_adj", "1000")
    num_others: int | None = 1
    if terms.readable:
        num_others = weak.count_processes_of_user() - 1
        os.chdir(order.weak_box)
        os.environ |= {"HOME": order.weak_box, "TMPDIR": order.weak_box}
        sys.path[0] = order.weak_box
    elif terms.in_container:
        os.chdir(isolation.BOX)
        num_others = None  # the kernel counts this user's processes in all containers together
    else:
        isolation.enter_box()
    files = unpack_payload(_read_whole(payload))
    isolation.write_files(files, executable=order.main_file if order.argv else "")
    _forget(_find_shadowed(files))
    sys.path_importer_cache.pop(isolation.BOX, None)
    if order.wants_box:
        box = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        socket.send_fds(control, [b"box"], [box])
    for number, stream in enumerate(streams[:3]):
        os.dup2(stream, number)
    isolation.limit_run(order, has_cgroup=terms.has_cgroup, num_others=num_others)
    if terms.readable:
        weak.fence(order.weak_box, terms.readable, has_cgroup=terms.has_cgroup)
    else:
        kernel.forget_capabilities()
    kernel.install_filter(_filter)
    return files[order.main_file]


def _find_shadowed(files: Iterable[str]) -> list[str]:
    """Modules that the run's own files shadow on import, as files beside a script do. Excluded: modules that every
    interpreter loads at its start, and files with a dot in their name, which no import finds."""
    names = {path.partition("/")[0].removesuffix(".py") for path in files}
    own = {name for name in names if name not in _FROM_THE_START and not _imp.is_frozen(name)}
    return [name for name in sys.modules if name.partition(".")[0] in own]


_FROM_THE_START: Final = frozenset({*sys.builtin_module_names, "__main__", "encodings"})


def _read_whole(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    data = os.pread(descriptor, size, 0)
    while len(data) < size:
        data += os.pread(descriptor, size - len(data), len(data))
    return data


def _forget(modules: Iterable[str]) -> None:
    _forgotten.extend(sys.modules.pop(name, None) for name in modules)


def _execute(argv: tuple[str, ...]) -> NoReturn:
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    try:
        os.execv(argv[0], argv)  # noqa: S606 -- a program of a fixed table
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127)


def _become_interpreter(terms: Terms) -> None:
    """Restore the state of a freshly started interpreter."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.enable()  # `random` has a new seed: it sees to that itself after a fork
    if terms.flavour == Flavour.NUMPY:
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None:  # else the code has a numpy of its own
            numpy_random.seed()
    for number, errors in enumerate(("surrogateescape", "surrogateescape", "backslashreplace")):
        name = ("stdin", "stdout", "stderr")[number]
        stream = _open_stream(number, f"<{name}>", errors)
        vars(sys).update({name: stream, f"__{name}__": stream})


def _run_python(source: bytes, path: str) -> NoReturn:
    module = types.ModuleType("__main__")
    module.__dict__.update(__builtins__=__builtins__, __file__=path, __cached__=None)
    sys.modules["__main__"] = module
    try:
        exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 -- running the code is the purpose
        code = 0
    except SystemExit as error:
        code = _exit_code(error.code)
    except BaseException as error:  # noqa: BLE001 -- as the interpreter does
        code = 1
        _show(error)
    _leave(code, module)


def _open_stream(descriptor: int, name: str, errors: str) -> io.TextIOWrapper:
    raw = io.FileIO(descriptor, "r" if descriptor == 0 else "w", closefd=False)
    raw.name = name
    buffer = io.BufferedReader(raw) if descriptor == 0 else io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, "utf-8", errors, line_buffering=descriptor == 2)


def _exit_code(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, int):
        return value & 0xFF
    with contextlib.suppress(BaseException):
        sys.stderr.write(f"{value}\n")
    return 1


def _show(error: BaseException) -> None:
    """Print the traceback without the frame above that runs the code."""
    trace = error.__traceback__.tb_next if error.__traceback__ else None
    try:
        sys.excepthook(type(error), error.with_traceback(trace), trace)
    except BaseException:  # noqa: BLE001 -- a broken hook of the code's own
        sys.__excepthook__(type(error), error, trace)


def _leave(code: int, module: types.ModuleType) -> NoReturn:
    """End as an interpreter does: join threads, run exit handlers, release globals, flush."""
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    with contextlib.suppress(BaseException):
        module.__dict__.clear()
    for stream in (sys.stdout, sys.__stdout__, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except BaseException:  # noqa: BLE001 -- the stream may be the code's own
            code = code or 120
    os._exit(code)
