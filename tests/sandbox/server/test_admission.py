"""Slots and the queue: bounded, fair between callers, and nothing is lost when a caller gives up."""

import asyncio

import pytest

from sandbox.errors import BatchTooLarge, SandboxBusy
from sandbox.server.admission import Admission


async def start(admission: Admission, caller: str, done: list[str]) -> asyncio.Task[int]:
    (ticket,) = admission.admit(caller, 1)

    async def wait() -> int:
        slot = await admission.acquire(ticket)
        done.append(caller)
        return slot

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    return task


def test_callers_take_turns_however_much_one_of_them_asks() -> None:
    async def scene() -> list[str]:
        admission, done = Admission(1, 100), list[str]()
        first = await start(admission, "greedy", done)
        tasks = [await start(admission, caller, done) for caller in ["greedy"] * 4 + ["modest"] * 2]
        slot = await first
        for _ in tasks:
            admission.release(slot)
            await asyncio.sleep(0)
        return done[1:]

    assert asyncio.run(scene()) == ["greedy", "modest", "greedy", "modest", "greedy", "greedy"]


def test_one_caller_cannot_fill_the_queue_and_all_callers_cannot_overfill_it() -> None:
    async def scene() -> None:
        admission, done = Admission(1, 4), list[str]()
        for _ in range(4):
            await start(admission, "greedy", done)
        with pytest.raises(SandboxBusy):
            admission.admit("greedy", 1)
        await start(admission, "modest", done)
        with pytest.raises(SandboxBusy):
            admission.admit("third", 1)
        assert (admission.num_running, admission.num_waiting) == (1, 4)

    asyncio.run(scene())


def test_a_batch_is_admitted_whole_or_not_at_all() -> None:
    async def scene() -> None:
        admission = Admission(2, 4)
        tickets = admission.admit("batch", 5)
        with pytest.raises(SandboxBusy):
            admission.admit("other", 2)  # what was promised counts before it waits
        for ticket in tickets:  # cancelled before it began
            admission.give_back(ticket)
        admission.admit("other", 2)

    asyncio.run(scene())


@pytest.mark.parametrize(("queue_limit", "most"), [(4, 5), (1, 3), (0, 2)])
def test_a_batch_that_could_never_be_admitted_is_told_so(queue_limit: int, most: int) -> None:
    admission = Admission(2, queue_limit)
    with pytest.raises(BatchTooLarge, match=f"at most {most} "):
        admission.admit("batch", most + 1)
    assert len(admission.admit("batch", most)) == most


def test_a_caller_who_gives_up_leaves_the_queue_and_loses_no_slot() -> None:
    async def scene() -> None:
        admission, done = Admission(1, 8), list[str]()
        slot = await (await start(admission, "a", done))
        quitter, last_minute, stays = [await start(admission, caller, done) for caller in ("b", "c", "d")]
        quitter.cancel()
        await asyncio.sleep(0)
        assert admission.num_waiting == 2
        admission.release(slot)  # it is c's now
        last_minute.cancel()
        assert await stays == slot
        admission.release(slot)
        assert (admission.num_running, admission.num_waiting) == (0, 0)

    asyncio.run(scene())
