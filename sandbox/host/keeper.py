"""The keeper of a slot: has its zygotes fork one run after another, or a solution and its tests side by side, and
reports the outcomes.

A process of its own outside the slot, forked by the spawner. If anything is wrong with a zygote the keeper ends, and
the server gets another. Only the standard library; loads under `python -S`.
"""

import contextlib
import select
import signal
import socket

from sandbox.host.following import SETUP_SECONDS, Run, RunLost
from sandbox.host.launch import DEATH_SECONDS, Setup, Zygote
from sandbox.inside import kernel, weak, wire, zygote
from sandbox.inside.wire import CANCEL, Ending, Hello, Job, KeeperSpec, Outcome, pack

RECEIVE_SECONDS = 20.0


class ServerGone(Exception):
    """The server is gone."""


def keep(connection: socket.socket, setup: Setup, spec: KeeperSpec) -> None:
    """Serve the server at the other end of the connection until it closes, or until a zygote is lost."""
    kernel.become_subreaper()
    with _Slot(setup, spec) as slot:
        try:
            slot.zygote(0)
        except (OSError, RunLost) as error:
            connection.sendall(pack(Hello(None, f"{error}")))
            return
        connection.sendall(pack(Hello("", "")))
        with contextlib.suppress(ServerGone, EOFError, BrokenPipeError, ConnectionResetError, TimeoutError):
            while slot.is_sound:
                connection.settimeout(None)
                connection.recv(1, socket.MSG_PEEK)
                connection.settimeout(RECEIVE_SECONDS)
                job = wire.receive(connection, wire.unpack_job)
                if job is not None:
                    connection.sendall(pack(slot.run(job, connection)))


class _Slot:
    """The zygotes of a slot: one for runs, and a second one once there was something to judge."""

    def __init__(self, setup: Setup, spec: KeeperSpec) -> None:
        self.is_sound = True
        self._setup = setup
        self._wish = spec
        self._zygotes: list[Zygote] = []

    def __enter__(self) -> "_Slot":
        return self

    def __exit__(self, *_: object) -> None:
        """End the zygotes, and with them every process of the slot."""
        self.is_sound = False
        while self._zygotes:
            self._zygotes.pop().close()

    def zygote(self, number: int) -> Zygote:
        """The zygote of this number, 0 or 1. Raises OSError, RunLost."""
        if number == len(self._zygotes):
            self._zygotes.append(Zygote.start(self._setup, self._wish, number))
        return self._zygotes[number]

    def run(self, job: Job, connection: socket.socket) -> Outcome:
        """Run one job, and its partner. A fault ends the slot. Raises ServerGone."""
        # should this process ever hang, it dies and the zygotes with it; the server then asks for another
        signal.alarm(int(SETUP_SECONDS + job.wall_seconds + 3 * DEATH_SECONDS))
        try:
            return self._run(job, connection)
        except RunLost as error:
            outcome = Outcome(Ending.FAULT, fault=str(error))
        except OSError as error:
            outcome = Outcome(Ending.FAULT, fault=f"{type(error).__name__}: {error}")
        finally:
            signal.alarm(0)
        self.is_sound = False
        return outcome

    def _run(self, job: Job, connection: socket.socket) -> Outcome:
        with contextlib.ExitStack() as stack:
            if job.partner is None:
                runs = [self._begin(stack, 0, job, None)]
            else:
                one_end, other_end = socket.socketpair()
                with one_end, other_end:  # closed here before the runs are followed: an end is then heard at the other
                    runs = [self._begin(stack, 0, job, one_end.fileno())]
                    runs.append(self._begin(stack, 1, job.partner, other_end.fileno()))
            try:
                _follow(runs, connection)
            except (RunLost, ServerGone) as error:
                groups = [each.group for each in self._zygotes]
                overflowed = any(group is not None and group.has_overflowed() for group in groups)
                self.__exit__()
                if isinstance(error, ServerGone) or not overflowed or job.partner is not None:
                    raise
                # all memory gone, and the zygote with it: that is the run's doing
                return Outcome(Ending.MEMORY)
            outcomes = [run.outcome() for run in runs]
        if job.partner is None:
            return outcomes[0]
        return wire.with_partner(outcomes[0], outcomes[1])

    def _begin(self, stack: contextlib.ExitStack, number: int, job: Job, channel: int | None) -> Run:
        chosen = self.zygote(number)
        weak_box = ""
        if self._setup.weak_folder is not None:
            weak_box = weak.make_box(self._setup.weak_folder, self._setup.owner(self._wish.slot))
            stack.callback(weak.remove_box, weak_box)
        if chosen.group is not None:
            chosen.group.begin(job.memory_bytes, job.processes)
        return stack.enter_context(Run(job, chosen.control, chosen.group, weak_box, channel))


def _follow(runs: list[Run], connection: socket.socket) -> None:
    """Watch until all have ended; the others are ended with the first. Raises RunLost, ServerGone."""
    while not all(run.is_over for run in runs):
        poll = select.poll()
        for descriptor in {connection.fileno()}.union(*(run.sources() for run in runs)):
            poll.register(descriptor, select.POLLIN)
        seconds = min([zygote.TICK_SECONDS, *(run.seconds_left for run in runs if not run.is_over)])
        ready = {descriptor for descriptor, _ in poll.poll(seconds * 1000 + 1)}
        if connection.fileno() in ready:
            _expect_cancel(connection)
            for run in runs:
                run.end(Ending.CANCELLED)
        for run in runs:
            if not run.is_over:
                run.attend(ready)
        if runs[0].is_over:
            for run in runs[1:]:
                run.end(Ending.CANCELLED)


def _expect_cancel(connection: socket.socket) -> None:
    """Take a CANCEL off the connection. Raises ServerGone when it was closed instead."""
    if connection.recv(len(CANCEL), socket.MSG_WAITALL) != CANCEL:
        raise ServerGone
