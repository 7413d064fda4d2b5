"""The process that starts slots: builds the read-only root once, then forks one keeper for each connection the server
hands it.

It has one thread and reads no job. When the server ends, however it ends, the spawner sees its socket close, waits for
the keepers (whose connections closed too) and removes the cgroups. Run as `python -I -S`; only the standard library.
"""

import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

from sandbox.host.cgroups import Place
from sandbox.host.keeper import keep
from sandbox.host.launch import Setup
from sandbox.host.program import INSIDE, read_modules
from sandbox.host.root import Interpreter, enter_root
from sandbox.inside import isolation, kernel, seccomp, weak, wire, zygote
from sandbox.inside.wire import Hello, pack_packet, unpack_spec

FAREWELL_SECONDS = 15.0
_BURIAL_SECONDS = 0.2
"""Between two looks whether the zygotes of a keeper that was killed are dead too."""


def main(descriptor: int, weak_parent: str, packages: tuple[str, ...]) -> None:
    """Serve the server at the other end of this socket until it closes.

    `weak_parent` is where runs may get folders at the level `weak`, empty when that level is not accepted; `packages`
    are the folders that the flavour `numpy` imports.
    """
    server = socket.socket(fileno=descriptor)
    server.set_inheritable(False)
    is_root = os.getuid() == 0
    interpreter = Interpreter.of_this_process()
    program = _read_program()
    problem = _try_namespaces(interpreter, packages, is_root=is_root)
    if problem:
        refusal = _why_not_weak(interpreter, packages, is_root=is_root) if weak_parent else problem
        if refusal:
            server.sendall(pack_packet(Hello(None, refusal)))
            return
    with contextlib.ExitStack() as stack:
        place = Place.find()
        if place:
            stack.callback(place.remove)
        weak_folder = None
        if problem:
            weak_folder = weak.make_folder(weak_parent)
            stack.callback(weak.remove_folder, weak_folder)
            level = "weak"
        else:
            _enter_namespaces(interpreter, packages, is_root=is_root, has_cgroup=place is not None)
            level = "full" if place else "full-nocgroup"
        server.sendall(pack_packet(Hello(level, problem)))
        _serve(server, Setup(interpreter, program, packages, is_root, place, weak_folder))
        _await_children()


def _read_program() -> dict[str, bytes]:
    """The zygote's program, before the host's files are out of reach."""
    return {"main.py": Path(zygote.__file__).read_bytes(), **read_modules(INSIDE)}


def _enter_namespaces(interpreter: Interpreter, packages: tuple[str, ...], *, is_root: bool, has_cgroup: bool) -> None:
    if not is_root:
        isolation.become_root_of_own_namespace()
    enter_root(interpreter, packages, has_cgroup=has_cgroup)


def _try_namespaces(interpreter: Interpreter, packages: tuple[str, ...], *, is_root: bool) -> str:
    """Why this machine forbids the isolation; empty if it allows it. Tried in a child: half of it cannot be undone."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        problem = "unexpected"
        try:
            seccomp.assemble(kernel.MACHINE)
            _enter_namespaces(interpreter, packages, is_root=is_root, has_cgroup=False)
            problem = ""
        except OSError as error:
            problem = f"{error.filename or ''} {error.strerror or error}".strip()
        finally:
            os.write(write_end, problem.encode())
            os._exit(0)
    os.close(write_end)
    said = os.read(read_end, 4096).decode(errors="replace")
    os.close(read_end)
    os.waitpid(pid, 0)
    return said


def _why_not_weak(interpreter: Interpreter, packages: tuple[str, ...], *, is_root: bool) -> str:
    """Why the level `weak` is unavailable here too; empty if it is available."""
    try:
        version = kernel.landlock_version()
    except OSError as error:
        return f"the level weak needs Landlock: {error.strerror or error}"
    if version < kernel.LANDLOCK_TRUNCATES:
        return "the level weak needs Linux 6.2 or newer: before, Landlock does not keep files from being emptied"
    closed = weak.find_closed_folder((*interpreter.paths(), *packages)) if is_root else None
    if closed is not None:
        return (
            f"at the level weak runs of a sandbox that is root have users of their own, who may not enter {closed}, "
            f"where its Python is: install Python elsewhere, or run the sandbox as an ordinary user"
        )
    return ""


def _serve(server: socket.socket, setup: Setup) -> None:
    dead: list[int] = []
    while True:
        dead += _reap()
        if setup.place is not None:
            dead = [keeper for keeper in dead if not setup.place.remove_groups(keeper)]
        server.settimeout(_BURIAL_SECONDS if setup.place is not None and dead else None)
        try:
            message, descriptors, _, _ = socket.recv_fds(server, wire.MAX_PACKET_BYTES, 1)
        except TimeoutError:
            continue
        if not message:
            return
        (connection,) = descriptors
        os.set_inheritable(connection, False)  # a received descriptor would outlive an exec
        if os.fork() == 0:
            try:
                server.close()
                kernel.die_with_parent(signal.SIGKILL)
                keep(socket.socket(fileno=connection), setup, unpack_spec(message))
            except Exception as error:  # noqa: BLE001 -- its last words; the server sees the connection close
                sys.stderr.write(f"sandbox keeper: {type(error).__name__}: {error}\n")
                sys.stderr.flush()
            finally:
                os._exit(0)
        os.close(connection)


def _reap() -> list[int]:
    """Bury the keepers that have ended; gives their numbers."""
    dead = []
    with contextlib.suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            dead.append(pid)
    return dead


def _await_children() -> None:
    deadline = time.monotonic() + FAREWELL_SECONDS
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
