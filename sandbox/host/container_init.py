"""PID 1 of a container that runs one job: zygote and keeper in one process, for the backend `docker`.

The container is the isolation: its processes, network, read-only root, folders and memory are its own, and it is
removed after this one job with everything left in it. PID 1 gets the job on standard input, forks the run, keeps its
deadline and caps, and reports the outcome on standard output. The code has the same user, but PID 1 can be neither
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

from sandbox.host.following import Run, RunLost
from sandbox.inside import kernel, wire, zygote
from sandbox.inside.wire import CHANNEL_LETTER, OUTCOME_LETTER, PIECE_BYTES, Ending, Outcome, Role

FOLDERS: Final = ("inside", "host")
"""Where the program lies that a container is sent."""
MAIN: Final = "from sandbox.host.container_init import main\nmain()\n"
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
    usage = zygote.begin(control, order, tuple(descriptors), terms)
    # from here on two threads: this one is the zygote, the other one its keeper, who ends the process
    threading.Thread(target=_keep, args=(run, _Relay(ours) if has_channel else None, num_kills)).start()
    control.send(wire.pack_packet(zygote.finish(control, usage, order, terms)))


def _receive() -> bytes:
    """A frame from standard input."""
    (length,) = wire.HEADER.unpack(_read_exactly(wire.HEADER.size))
    return _read_exactly(length)


def _read_exactly(num_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < num_bytes:
        piece = os.read(0, min(num_bytes - len(data), 1 << 20))
        if not piece:
            raise SystemExit("no job was sent")
        data += piece
    return bytes(data)


def _remove_program() -> None:
    """Leave the folder to the run, empty."""
    for folder, _, files in os.walk("sandbox", topdown=False):
        for name in files:
            os.unlink(f"{folder}/{name}")
        os.rmdir(folder)
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
    """Relays messages between the run and its partner in another container. A partner that does not read holds up only
    the run that writes: standard input is always read, and standard output can always be written."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._channel.setblocking(False)
        self._run_says_more = True
        self._run_hears_more = True
        self._partner_says_more = True
        self._under_way = 0  # bytes of the run's that its partner has not taken
        self._received = bytearray()
        self._to_run = bytearray()
        self._to_server = bytearray()
        os.set_blocking(1, False)

    def interests(self) -> dict[int, int]:
        """Events to wait for, by descriptor."""
        has_room = not self._to_server and self._under_way < wire.WINDOW_BYTES
        of_run = (select.POLLIN if self._run_says_more and has_room else 0) | (select.POLLOUT if self._to_run else 0)
        wanted = {0: select.POLLIN, 1: select.POLLOUT if self._to_server else 0, self._channel.fileno(): of_run}
        return {descriptor: events for descriptor, events in wanted.items() if events}

    def attend(self) -> None:
        """Pass on everything that can be written now."""
        if not self._to_server and self._under_way < wire.WINDOW_BYTES:
            self._hear_run()
        self._tell_run()
        self._tell_server()

    def hear_partner(self, data: bytes) -> None:
        """Read from standard input."""
        self._received += data
        for letter, body in wire.take_lettered(self._received):
            if letter == wire.TAKEN_LETTER:
                self._under_way -= wire.HEADER.unpack(body)[0]
                continue
            self._to_run += body
            self._partner_says_more = self._partner_says_more and bool(body)
            if letter == wire.ENDED_LETTER:
                self._run_says_more = False
                with contextlib.suppress(OSError):
                    self._channel.shutdown(socket.SHUT_RD)  # a run that writes more gets a broken pipe

    def _hear_run(self) -> None:
        if not self._run_says_more:
            return
        try:
            piece = self._channel.recv(PIECE_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            piece = b""
        self._run_says_more = bool(piece)
        self._under_way += len(piece)
        self._to_server += wire.pack_lettered(CHANNEL_LETTER, piece)

    def _tell_run(self) -> None:
        before = len(self._to_run)
        try:
            while self._to_run and self._run_hears_more:
                del self._to_run[: self._channel.send(self._to_run)]
            if not self._partner_says_more and self._run_hears_more:
                self._run_hears_more = False
                self._channel.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:  # the run has closed its end
            self._run_hears_more = False
        if not self._run_hears_more:
            self._to_run.clear()
        if taken := before - len(self._to_run):
            self._to_server += wire.pack_lettered(wire.TAKEN_LETTER, wire.HEADER.pack(taken))

    def _tell_server(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._to_server:
                del self._to_server[: os.write(1, self._to_server)]

    def finish(self) -> None:
        """Pass on the dead run's remaining output, at most one socket buffer."""
        os.set_blocking(1, True)
        self._tell_server()
        while self._run_says_more:
            self._hear_run()
            self._run_says_more = self._run_says_more and bool(self._to_server)
            self._tell_server()


def _keep(run: Run, relay: _Relay | None, num_kills: int) -> None:
    """Follow the run to its end, report the outcome, and end the process and with it the container."""
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
