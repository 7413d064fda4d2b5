"""Who may run when: slots, a bounded queue, and fairness between callers."""

import asyncio
import math
from collections import OrderedDict, deque

from sandbox.errors import BatchTooLarge, SandboxBusy

ONE_CALLERS_SHARE = 0.75
"""Of the queue that one caller may fill, so that another one always finds room."""


class Ticket:
    """Leave to take a slot, once."""

    def __init__(self, caller: str) -> None:
        self.caller = caller
        self.is_used = False


class Admission:
    """Hands out slots by number. Waiting callers take turns, however many runs each has asked for; each caller's own
    runs stay in order."""

    def __init__(self, num_slots: int, queue_limit: int) -> None:
        self._num_slots = num_slots
        self._queue_limit = queue_limit
        self._free = list(range(num_slots))
        self._waiting: OrderedDict[str, deque[asyncio.Future[int]]] = OrderedDict()
        self._num_promised = 0

    @property
    def num_running(self) -> int:
        """Slots that are taken."""
        return self._num_slots - len(self._free)

    @property
    def num_waiting(self) -> int:
        """Runs that wait for a slot."""
        return sum(map(len, self._waiting.values()))

    def admit(self, caller: str, num_runs: int) -> list[Ticket]:
        """Let so many runs of a caller in, a ticket for each; raises SandboxBusy when there is no room for all of them,
        BatchTooLarge when there never will be.

        Every ticket is to be given back at last, used or not: a run may be cancelled before it begins.
        """
        share = min(max(1, math.ceil(ONE_CALLERS_SHARE * self._queue_limit)), self._queue_limit)
        if num_runs > self._num_slots + share:
            raise BatchTooLarge(
                f"at most {self._num_slots + share} runs at once fit into this sandbox's slots and queue"
            )
        room = len(self._free) + self._queue_limit - self.num_waiting - self._num_promised
        own_room = len(self._free) + share - len(self._waiting.get(caller, ())) - self._num_promised
        if num_runs > min(room, own_room):
            raise SandboxBusy(f"{self.num_running} runs are running and {self.num_waiting} waiting")
        self._num_promised += num_runs
        return [Ticket(caller) for _ in range(num_runs)]

    def give_back(self, ticket: Ticket) -> None:
        """Forget a ticket that was not used."""
        if not ticket.is_used:
            ticket.is_used = True
            self._num_promised -= 1

    async def acquire(self, ticket: Ticket) -> int:
        """Wait for a slot; gives its number."""
        self.give_back(ticket)
        caller = ticket.caller
        if self._free:
            return self._free.pop()
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(turn.result())
            else:
                self._forget(caller, turn)
            raise

    def _forget(self, caller: str, turn: asyncio.Future[int]) -> None:
        queue = self._waiting.get(caller)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[caller]

    def release(self, slot: int) -> None:
        """Return a slot, to the caller whose turn it is if one waits."""
        while self._waiting:
            caller, queue = self._waiting.popitem(last=False)
            turn = queue.popleft()
            if queue:
                self._waiting[caller] = queue  # at the end: the others come first
            if not turn.done():
                turn.set_result(slot)
                return
        self._free.append(slot)
