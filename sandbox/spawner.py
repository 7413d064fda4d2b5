"""The process that starts runs: builds the read-only root once, then forks one supervisor for each connection the
server hands it.

It has one thread and reads no job, so nothing of one run can be left in it for the next. When the server ends, however
it ends, the spawner sees its socket close, waits for the supervisors (whose connections closed too) and removes the
cgroups. Run as `python -I -S` with the number of its socket; only the standard library.
"""

import contextlib
import os
import signal
import socket
import sys
import time

from sandbox import isolation, kernel, seccomp
from sandbox.cgroups import Place
from sandbox.isolation import Interpreter
from sandbox.supervisor import supervise
from sandbox.wire import Hello, pack

FAREWELL_SECONDS = 15.0


def main(descriptor: int) -> None:
    """Serve the server at the other end of this socket until it closes."""
    server = socket.socket(fileno=descriptor)
    server.set_inheritable(False)
    is_root = os.getuid() == 0
    interpreter = Interpreter.of_this_process()
    try:
        seccomp.assemble(kernel.MACHINE)
        place = Place.find()
    except OSError as error:
        server.sendall(pack(Hello(None, str(error))))
        return
    try:
        try:
            if not is_root:
                isolation.become_root_of_own_namespace()
            isolation.enter_root(interpreter)
        except OSError as error:
            server.sendall(pack(Hello(None, f"cannot isolate: {error}")))
            return
        server.sendall(pack(Hello("full" if place else "full-nocgroup", "")))
        _serve(server, interpreter, place, is_root=is_root)
        _await_children()
    finally:
        if place:
            place.remove()


def _serve(server: socket.socket, interpreter: Interpreter, place: Place | None, *, is_root: bool) -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(server, 1, 1)
        if not message:
            return
        (connection,) = descriptors
        os.set_inheritable(connection, False)  # a received descriptor would outlive an exec
        _reap()
        if os.fork() == 0:
            try:
                server.close()
                kernel.die_with_parent(signal.SIGKILL)
                supervise(socket.socket(fileno=connection), interpreter, place, is_root=is_root)
            except Exception as error:  # noqa: BLE001 -- its last words; the server sees the connection close
                sys.stderr.write(f"sandbox supervisor: {type(error).__name__}: {error}\n")
                sys.stderr.flush()
            finally:
                os._exit(0)
        os.close(connection)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _await_children() -> None:
    deadline = time.monotonic() + FAREWELL_SECONDS
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
