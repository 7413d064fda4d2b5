"""Starts zygotes, for the keeper. Only the standard library; loads under `python -S`."""

import contextlib
import fcntl
import os
import signal
import socket
from dataclasses import dataclass

from sandbox.host.cgroups import Group, Place
from sandbox.host.following import RunLost
from sandbox.host.root import Interpreter
from sandbox.inside import isolation, kernel, weak, wire, zygote
from sandbox.inside.isolation import ENVIRONMENT, PACKAGES, SLOT_UID_BASE
from sandbox.inside.wire import Flavour, KeeperSpec, Terms

START_SECONDS = 30.0
DEATH_SECONDS = zygote.DEATH_SECONDS


@dataclass(frozen=True)
class Setup:
    """Facts about the machine, found once by the spawner for all slots."""

    interpreter: Interpreter
    program: dict[str, bytes]
    """The zygote's modules, by path below its folder."""
    packages: tuple[str, ...]
    is_root: bool
    place: Place | None
    weak_folder: str | None
    """Where runs get their folders at the level `weak`; None at the others."""

    def owner(self, slot: int) -> int | None:
        """The user that a slot's processes become, when the server is root."""
        return SLOT_UID_BASE + slot if self.is_root else None

    @property
    def readable(self) -> tuple[str, ...]:
        """Paths that Landlock lets runs read at the level `weak`."""
        if self.weak_folder is None:
            return ()
        return (*isolation.SYSTEM, *isolation.SYSTEM_FILES, *self.interpreter.paths(), *self.packages)


class Zygote:
    """A warm interpreter in a slot, with its resources. `start` makes it, `close` ends it and all its forks."""

    def __init__(self, setup: Setup, slot: int, number: int) -> None:
        self.group: Group | None = None
        self._setup = setup
        self._pid = 0
        self._folder = ""
        self.control, self._far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if setup.place is not None:
            self.group = setup.place.make_group(os.getpid(), number)
        if setup.weak_folder is not None:
            self._folder = weak.make_box(setup.weak_folder, setup.owner(slot))

    @classmethod
    def start(cls, setup: Setup, spec: KeeperSpec, number: int) -> "Zygote":
        """Start the slot's zygote of this number and wait until it is warm. Raises OSError, RunLost."""
        made = cls(setup, spec.slot, number)
        try:
            made._fork(spec)
            made.control.settimeout(START_SECONDS)
            with contextlib.suppress(BrokenPipeError):  # it has ended; why, it said before
                made.control.send(
                    wire.pack_packet(
                        Terms(
                            spec.flavour,
                            has_cgroup=made.group is not None,
                            has_processor_counter=made.group is not None and made.group.counts_processor,
                            owns_user=setup.is_root,
                            readable=setup.readable,
                            in_container=False,
                        )
                    )
                )
            try:
                said = made.control.recv(wire.MAX_PACKET_BYTES)
            except ConnectionResetError:  # it has ended before it read its terms; its message comes after that
                said = made.control.recv(wire.MAX_PACKET_BYTES)
            if said != b"ready":
                raise RunLost(said.decode(errors="replace") or "the zygote ended at its start")
        except (OSError, RunLost):
            made.close()
            raise
        if made.group is not None:
            made.group.note_overhead()
        return made

    def _fork(self, spec: KeeperSpec) -> None:
        """Fork the zygote from a process in between, which alone may make the pid namespace for it: a process can do
        that once. The zygote is then handed to this process, a subreaper."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        between = os.fork()
        if between == 0:
            try:
                self.control.close()
                if self._setup.weak_folder is None:
                    kernel.unshare(kernel.Namespace.PID)
                pid = os.fork()
                if pid == 0:
                    self._become_zygote(spec)
                os.write(write_end, str(pid).encode())
            except OSError as error:
                self._far_end.send(f"{error}".encode()[:4000])
            finally:
                os._exit(0)
        os.close(write_end)
        self._far_end.close()
        os.waitpid(between, 0)
        self._pid = int(os.read(read_end, 32) or b"0")
        os.close(read_end)

    def _become_zygote(self, spec: KeeperSpec) -> None:
        """Be the zygote, or say why not and end."""
        setup = self._setup
        try:
            if self.group is not None:
                self.group.enter()
            environment = dict(ENVIRONMENT)
            if setup.weak_folder is None:
                proc = isolation.enter_slot(setup.owner(spec.slot), setup.program)
            else:
                proc = weak.enter_slot(self._folder, setup.owner(spec.slot), setup.program)
            if spec.flavour == Flavour.NUMPY:
                environment["PYTHONPATH"] = os.path.dirname(setup.packages[0]) if setup.weak_folder else PACKAGES
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            for number in range(2):  # its errors go to the server's log
                os.dup2(null, number)
            # neither may be overwritten before it is in its place
            copies = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in (self._far_end.fileno(), proc)]
            os.dup2(copies[0], zygote.CONTROL)
            os.dup2(copies[1], zygote.PROC)
            kernel.close_from(5)
            executable = setup.interpreter.executable
            os.execve(executable, [executable, "main.py"], environment)  # noqa: S606
        except OSError as error:
            with contextlib.suppress(OSError):
                self._far_end.send(f"{error.filename or ''} {error.strerror or error}".strip().encode()[:4000])
        finally:
            os._exit(127)

    def close(self) -> None:
        """Kill the zygote and with it every process of its namespace; remove its resources."""
        self.control.close()
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
        if self._folder:
            weak.kill_descendants(DEATH_SECONDS)
            weak.remove_box(self._folder)
        if self.group is not None:
            self.group.remove()
