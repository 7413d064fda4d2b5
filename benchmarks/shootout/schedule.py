"""The order of runs: the measurement that a run begins with is made when the first run needs it, once for all."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any

from benchmarks.shootout.runs import Outcome, Plan, Point


def make_runs(
    pool: Executor,
    at_once: int,
    plans: Sequence[Plan],
    starts: Mapping[str, Point],
    measure: Callable[[Plan], Point],
    run: Callable[[Plan, Point], Outcome],
) -> Iterator[tuple[Plan, Outcome]]:
    """Begin the runs in this order, so many at once, and yield each as it ends.

    starts: the measurements that are known, by `Plan.start`. measure, run: what the pool is given.
    """
    known, left = dict(starts), deque(plans)
    held: dict[str, list[Plan]] = {}  # by start that is being measured, the plans that wait for it
    measuring: dict[Future[Point], str] = {}
    running: dict[Future[Outcome], Plan] = {}
    while left or measuring or running:
        while left and len(measuring) + len(running) < at_once:
            plan = left.popleft()
            if plan.start in known:
                running[pool.submit(run, plan, known[plan.start])] = plan
            elif plan.start in held:
                held[plan.start].append(plan)
            else:
                held[plan.start] = [plan]
                measuring[pool.submit(measure, plan)] = plan.start
        pending: list[Future[Any]] = [*measuring, *running]
        ended, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in [one for one in measuring if one in ended]:
            start = measuring.pop(future)
            known[start] = future.result()
            left.extendleft(reversed(held.pop(start)))
        for done in [one for one in running if one in ended]:
            yield running.pop(done), done.result()
