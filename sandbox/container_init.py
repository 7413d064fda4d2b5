"""PID 1 of a container that runs one job: zygote and keeper in one process, for the backend `docker`.

The container is the isolation: its processes, network, read-only root, folders and memory are nobody else's, and it is
removed after this one job, with whatever is left in it. PID 1 gets the job on standard input, forks the run, keeps its
deadline and caps, and says on standard output what became of it. The code has the same user, but PID 1 can be neither
traced, signalled nor opened by it, and shares no open file with it; the run has the limits and the seccomp filter of
every other level.

Memory is measured as without a cgroup; the container's own limit, a little higher, is the second net. Only the standard
library.
"""

import contextlib
import fcntl
import os
import select
import signal
import socket
import threading
from dataclasses import replace
from typing import Final

from sandbox import kernel, wire, zygote
from sandbox.following import Run, RunLost
from sandbox.wire import CHANNEL_LETTER, OUTCOME_LETTER, PIECE_BYTES, Ending, Outcome, Role

MODULES: Final = (*zygote.PROGRAM, "cgroups", "collecting", "container_init", "following", "zygote")
"""The program that a container is sent."""
MAIN: Final = "from sandbox.container_init import main\nmain()\n"
NUM_OWN_TASKS: Final = 2
"""Threads of PID 1 that the container's limit of processes counts too."""
_OOM_COUNTERS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")


def main() -> None:
    """Run the job and end the container."""
    kernel.set_dumpable(False)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    kernel.drop_capabilities()
    terms = wire.unpack_terms(_receive())
    job = wire.unpack_job(_receive())
    _remove_program()
    zygote.warm(terms)
    num_kills = _num_oom_kills()
    control, keeper_end, ours, theirs = _make_sockets()
    has_channel = job.role in (Role.SOLUTION, Role.TESTS)
    run = Run(job, keeper_end, None, "", theirs.fileno() if has_channel else None)
    theirs.close()
    message, descriptors, _, _ = socket.recv_fds(control, wire.MAX_PACKET_BYTES, 8)
    order = wire.unpack_order(message)
    tally = zygote.begin(control, order, tuple(descriptors), terms)
    # from here on two threads: this one is the zygote, the other one its keeper, who ends the process
    threading.Thread(target=_keep, args=(run, _Relay(ours) if has_channel else None, num_kills)).start()
    control.send(wire.pack_packet(zygote.finish(control, tally, order, terms)))


def _receive() -> bytes:
    """A frame from standard input."""
    (length,) = wire.HEADER.unpack(_read_exactly(wire.HEADER.size))
    return _read_exactly(length)


def _read_exactly(num_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < num_bytes:
        piece = os.read(0, min(num_bytes - len(data), 1 << 20))
        if not piece:
            raise SystemExit("nobody sends a job")
        data += piece
    return bytes(data)


def _remove_program() -> None:
    """Leave the folder to the run, empty."""
    for name in os.listdir("sandbox"):
        os.unlink(f"sandbox/{name}")
    os.rmdir("sandbox")
    os.unlink("main.py")


def _make_sockets() -> tuple[socket.socket, socket.socket, socket.socket, socket.socket]:
    """The zygote's end of its control socket and the keeper's, our end of the channel and the run's. The zygote's open
    files come where it expects them, the others out of their way."""
    pairs = (*socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET), *socket.socketpair())
    above = [fcntl.fcntl(each.fileno(), fcntl.F_DUPFD_CLOEXEC, 10) for each in pairs]
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    above.append(fcntl.fcntl(proc, fcntl.F_DUPFD_CLOEXEC, 10))
    for each in pairs:
        each.close()
    os.close(proc)
    os.dup2(above[0], zygote.CONTROL, inheritable=False)
    os.dup2(above[4], zygote.PROC, inheritable=False)
    return socket.socket(fileno=zygote.CONTROL), *(socket.socket(fileno=each) for each in above[1:4])  # type: ignore[return-value]


class _Relay:
    """Passes on what the run and its partner, in another container, say to each other. Never waits: what cannot be
    passed on holds up the one who said it, and nobody else."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._channel.setblocking(False)
        self._is_open = True
        self._frames = bytearray()
        self._to_run = bytearray()
        self._to_partner = bytearray()
        self._partner_has_ended = False
        os.set_blocking(1, False)

    def interests(self) -> dict[int, int]:
        """What to wait for, by descriptor."""
        wanted = {0: 0 if self._to_run else select.POLLIN, 1: select.POLLOUT if self._to_partner else 0}
        if self._is_open:
            wanted[self._channel.fileno()] = (0 if self._to_partner else select.POLLIN) | (
                select.POLLOUT if self._to_run else 0
            )
        return {descriptor: events for descriptor, events in wanted.items() if events}

    def attend(self) -> None:
        """Pass on what can be."""
        self._hear_run()
        self._tell_run()
        self._tell_partner()

    def hear_partner(self, data: bytes) -> None:
        """Take what came on standard input."""
        self._frames += data
        while len(self._frames) >= wire.HEADER.size:
            (length,) = wire.HEADER.unpack_from(self._frames)
            end = wire.HEADER.size + length
            if len(self._frames) < end:
                break
            self._to_run += self._frames[wire.HEADER.size : end]
            self._partner_has_ended = self._partner_has_ended or length == 0
            del self._frames[:end]

    def _hear_run(self) -> None:
        if not self._is_open or self._to_partner:
            return
        try:
            piece = self._channel.recv(PIECE_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            piece = b""
        self._is_open = bool(piece)
        self._to_partner += wire.pack_lettered(CHANNEL_LETTER, piece)

    def _tell_run(self) -> None:
        try:
            while self._to_run:
                del self._to_run[: self._channel.send(self._to_run)]
            if self._partner_has_ended and self._is_open:
                self._channel.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:  # the run has closed its end
            self._to_run.clear()

    def _tell_partner(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._to_partner:
                del self._to_partner[: os.write(1, self._to_partner)]

    def finish(self) -> None:
        """Pass on what the dead run left to be said; this may wait."""
        os.set_blocking(1, True)
        self._tell_partner()
        while self._is_open:
            self._hear_run()
            self._is_open = self._is_open and bool(self._to_partner)
            self._tell_partner()


def _keep(run: Run, relay: _Relay | None, num_kills: int) -> None:
    """Follow the run to its end, tell what became of it, and end the process, and with it the container."""
    try:
        outcome = _follow(run, relay)
    except (RunLost, OSError) as error:
        outcome = Outcome(Ending.FAULT, fault=f"{type(error).__name__}: {error}")
    if outcome.ending == Ending.SIGNALLED and _num_oom_kills() > num_kills:
        outcome = replace(outcome, ending=Ending.MEMORY, signal=None)
    if relay is not None:
        relay.finish()
    kernel.write_whole(1, wire.pack_lettered(OUTCOME_LETTER, wire.pack_body(outcome)))
    os._exit(0)


def _follow(run: Run, relay: _Relay | None) -> Outcome:
    """Raises RunLost, OSError."""
    has_server = True
    while not run.is_over:
        wanted = {descriptor: int(select.POLLIN) for descriptor in run.sources()}
        wanted |= {0: int(select.POLLIN)} if relay is None else relay.interests()
        if not has_server:
            wanted.pop(0, None)
        poll = select.poll()
        for descriptor, events in wanted.items():
            poll.register(descriptor, events)
        ready = {descriptor for descriptor, _ in poll.poll(min(zygote.TICK_SECONDS, run.seconds_left) * 1000 + 1)}
        if 0 in ready:
            data = os.read(0, PIECE_BYTES)
            has_server = bool(data)
            if not data:
                run.end(Ending.CANCELLED)
            elif relay is not None:
                relay.hear_partner(data)
        if relay is not None:
            relay.attend()
        run.attend(ready)
    return run.outcome()


def _num_oom_kills() -> int:
    """How often the kernel has ended a process of this container for want of memory."""
    for path in _OOM_COUNTERS:
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            for line in file:
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0
