"""In which order the shoot-out's runs are made, and what is measured before them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from benchmarks.shootout.runs import Outcome, Plan, Point
from benchmarks.shootout.schedule import make_runs
from tests.benchmarks.test_shootout import DISTIL, GRPO, make_plan, make_point

FIRST, SECOND = 0, 1
PLANS = [make_plan(DISTIL, FIRST), make_plan(GRPO, FIRST), make_plan(DISTIL, SECOND)]


def note(told: list[str], plan: Plan, what: str) -> None:
    told.append(f"{what} {plan.seed}")


def noting(told: list[str]) -> tuple[Callable[[Plan], Point], Callable[[Plan, Point], Outcome]]:
    """Both steps of a run, which say what they do; a run's curve is the point that it began with."""

    def measure(plan: Plan) -> Point:
        note(told, plan, "measure")
        return make_point(0, 0.0, plan.seed / 10)

    def run(plan: Plan, start: Point) -> Outcome:
        note(told, plan, plan.arm.name)
        return Outcome((start,), 0, 0, 0, 0)

    return measure, run


def test_a_start_is_measured_when_its_first_run_needs_it_and_once_for_all_runs_of_it() -> None:
    told: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        made = make_runs(pool, 1, PLANS, {}, *noting(told))
        assert next(made)[0] == PLANS[0]
        assert told == ["measure 0", "distil 0"], "the other seed's start is not measured before a run has ended"
        rest = list(made)
    assert told == ["measure 0", "distil 0", "grpo 0", "measure 1", "distil 1"]
    assert [plan for plan, _ in rest] == PLANS[1:]
    assert [outcome.curve[0] for _, outcome in rest] == [make_point(0, 0.0, 0.0), make_point(0, 0.0, 0.1)]


def test_a_start_that_an_earlier_run_tells_is_not_measured() -> None:
    told: list[str] = []
    known = {PLANS[0].start: make_point(0, 0.0, 0.7)}
    with ThreadPoolExecutor(1) as pool:
        [(_, outcome)] = make_runs(pool, 1, PLANS[:1], known, *noting(told))
    assert told == ["distil 0"]
    assert outcome.curve == (make_point(0, 0.0, 0.7),)


def test_while_a_start_is_measured_the_next_one_is_too_and_no_run_waits_for_another_start() -> None:
    together = Barrier(2, timeout=30)
    measure, run = noting([])

    def measure_beside(plan: Plan) -> Point:
        together.wait()
        return measure(plan)

    with ThreadPoolExecutor(2) as pool:
        made = list(make_runs(pool, 2, PLANS, {}, measure_beside, run))
    assert sorted((plan.seed, plan.arm.name) for plan, _ in made) == [(0, "distil"), (0, "grpo"), (1, "distil")]
