"""Which draws an evaluation plans, and how its results come apart again."""

from collections.abc import Sequence
from uuid import UUID

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from services.contracts.evaluations import EvaluationCreate
from services.contracts.rollouts import Purpose, Sampling
from services.contracts.tasks import Split
from services.store.core.transaction import Store
from services.store.ledger import policies
from services.store.loop import evaluations, groups, rollouts
from services.store.loop.groups import Draw
from services.store.loop.rollouts import Sample
from services.store.stats import estimates
from services.store.tables.loop import EvaluationRow, GroupRow, RolloutRow, TaskRow
from services.store.views import versions
from tests.store.conftest import TOKENIZER, World

pytestmark = pytest.mark.integration

TRAIN_DRAWS = Sampling(temperature=0.9, max_new_tokens=7, seed=3)


def plan(session: Session, world: World, wanted: EvaluationCreate) -> tuple[EvaluationRow, Sequence[GroupRow]]:
    row, ids = evaluations.create(session, world.lineage_id, wanted, TRAIN_DRAWS)
    return row, [session.get_one(GroupRow, one) for one in ids]


def drawn(session: Session, planned: Sequence[GroupRow]) -> list[tuple[str, float, int]]:
    """Task, temperature and size of each draw."""
    found = [
        (session.get_one(TaskRow, group.task_id).key, Sampling.model_validate(group.sampling), group.size)
        for group in planned
    ]
    assert {sampling.max_new_tokens for _, sampling, _ in found} == {7}
    return [(key, sampling.temperature, size) for key, sampling, size in found]


def test_each_task_is_drawn_at_each_temperature_and_greedily_once(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.task(session, "held", Split.HELDOUT)
        wanted = EvaluationCreate(temperatures=[1.0, 0.0, 0.5], num_samples=6)
        row, planned = plan(session, world, wanted)
        assert drawn(session, planned) == [("held", 0.0, 1), ("held", 0.5, 6), ("held", 1.0, 6)]
        assert row.settings["temperatures"] == [0.0, 0.5, 1.0]
        assert row.settings["sampling"] == {"top_p": 1.0, "top_k": 0, "max_new_tokens": 7, "stop": []}


def test_an_evaluation_of_heldout_tasks_draws_a_bounded_number_of_validation_tasks(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.task(session, "held", Split.HELDOUT)
        for number in range(5):
            world.task(session, f"valid{number}", Split.VALIDATION)

        def count(**wanted: object) -> int:
            given = EvaluationCreate.model_validate({"temperatures": [0.0, 1.0], "num_samples": 2} | wanted)
            _, planned = plan(session, world, given)
            return len({key for key, _, _ in drawn(session, planned) if key.startswith("valid")})

        assert count(num_validation_tasks=2) == 2
        assert count(num_validation_tasks=9) == 5
        assert count(num_validation_tasks=0) == 0
        assert count(temperatures=[0.5]) == 0  # there is nothing to choose
        assert count(split="validation", num_tasks=3, num_validation_tasks=5) == 3


def test_an_evaluation_of_some_domains_draws_no_task_of_others_and_says_which_has_none(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        for domain in ("math", "code/python", "tool-call"):
            world.task(session, f"held {domain}", Split.HELDOUT, domain)
            world.task(session, f"valid {domain}", Split.VALIDATION, domain)
        some = EvaluationCreate(domains=["math", "tool-call"], temperatures=[0.0, 1.0])
        _, planned = plan(session, world, some)
        found = {key for key, _, _ in drawn(session, planned)}
        assert found == {"held math", "valid math", "held tool-call", "valid tool-call"}
        with pytest.raises(evaluations.NothingToEvaluate, match="no tasks of code, command") as refused:
            plan(session, world, EvaluationCreate(domains=["math", "command", "code"]))
        assert refused.value.hint == "It has tasks of code/python, math, tool-call."
        with pytest.raises(evaluations.NothingToEvaluate, match="no tasks of code"):
            plan(session, world, EvaluationCreate(domains=["code"]))


def test_the_same_domains_in_another_order_are_the_same_settings(store: Store, world: World) -> None:
    with store.transaction() as session:
        for domain in ("math", "tool-call"):
            world.task(session, f"held {domain}", Split.HELDOUT, domain)
        orders = (["math", "tool-call"], ["tool-call", "math", "math"])
        one, other = (plan(session, world, EvaluationCreate(domains=domains))[0] for domains in orders)
        assert one.settings == other.settings


def finish(session: Session, group: GroupRow, scores: Sequence[float]) -> None:
    """Draw a planned group, as judged already."""
    [draw] = groups.claim(session, [group.id], 60)
    assert isinstance(draw, Draw)
    groups.finish(session, draw, "base")
    samples = [Sample(token_ids=[2, 3], logprobs=[-0.1, -0.2], text="4", finish_reason="stop") for _ in scores]
    stored = rollouts.add_drawn(
        session,
        group,
        tokenizer_hash=TOKENIZER,
        prompt_token_ids=[1],
        samples=samples,
        sampling=draw.sampling.model_dump(mode="json"),
    )
    for one, score in zip(stored.rollouts, scores, strict=True):
        session.execute(update(RolloutRow).where(RolloutRow.id == one.id).values(score=score))
    session.flush()


def test_a_finished_evaluation_knows_its_best_temperature(store: Store, world: World) -> None:
    """Greedy is best on the held-out task, .5 on the validation task: .5 is chosen."""
    with store.transaction() as session:
        world.task(session, "held", Split.HELDOUT)
        world.task(session, "valid", Split.VALIDATION)
        row, planned = plan(session, world, EvaluationCreate(temperatures=[0.0, 0.5], num_samples=2))
        assert versions.detail(session, row).best == []
        for group, scores in zip(planned, ([1.0], [0.0, 1.0], [0.0], [1.0, 0.0]), strict=True):
            finish(session, group, scores)
        evaluations.finish_complete(session)
        session.flush()
        session.refresh(row)
        found = versions.detail(session, row)
    assert [(one.key, one.temperature, one.num_passed, one.num_judged) for one in found.results] == [
        ("held", 0.0, 1, 1),
        ("held", 0.5, 1, 2),
    ]
    assert [(one.key, one.temperature) for one in found.validation_results] == [("valid", 0.0), ("valid", 0.5)]
    assert [(one.k, one.temperature, one.num_tasks) for one in found.best] == [(1, 0.5, 1), (2, 0.5, 1)]


def test_an_evaluation_of_validation_tasks_chooses_no_temperature_on_the_tasks_that_it_is_read_on(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        world.task(session, "valid", Split.VALIDATION)
        wanted = EvaluationCreate(split=Split.VALIDATION, temperatures=[0.0, 0.5], num_samples=2)
        row, planned = plan(session, world, wanted)
        for group, scores in zip(planned, ([1.0], [0.0, 1.0]), strict=True):
            finish(session, group, scores)
        evaluations.finish_complete(session)
        session.flush()
        session.refresh(row)
        found = versions.detail(session, row)
        [change, _] = versions.compare_two(session, row, row).headline
    assert ([one.num_passed for one in found.results], found.validation_results) == ([1, 1], [])
    reason = "it would be chosen on these very tasks"
    assert [(one.k, one.temperature, one.reason) for one in found.best] == [(1, None, reason), (2, None, reason)]
    assert (change.before, change.after, change.rise, change.reason) == (None, None, None, reason)


def test_an_evaluation_from_before_temperatures_opens_as_one_at_the_temperature_it_was_drawn_at(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        ids = [old_evaluation(session, world, sampling) for sampling in ({}, {"temperature": 0.7})]
        first, second = (versions.detail(session, evaluations.get(session, one)) for one in ids)
    assert [one.temperature for one in first.results] == [1.0]
    assert [one.temperature for one in second.results] == [0.7]
    assert {best.reason for best in first.best} == {"one temperature only"}
    assert {change.reason for change in estimates.headline(first, first)} == {"one temperature only"}


def old_evaluation(session: Session, world: World, sampling: dict[str, float]) -> UUID:
    task = world.task(session, "held", Split.HELDOUT)
    base = policies.serving(session, world.lineage_id)
    assert base is not None
    row = EvaluationRow(
        lineage_id=world.lineage_id,
        policy_version=base.name,
        split="heldout",
        settings={"split": "heldout", "num_samples": 1, "num_tasks": None, "seed": 0, "policy_version": None},
    )
    session.add(row)
    session.flush()
    group = groups.add(session, task, purpose=Purpose.EVALUATION, size=1, sampling=Sampling(), evaluation_id=row.id)
    group.sampling = dict(sampling)
    finish(session, group, [1.0])
    evaluations.finish_complete(session)
    session.flush()
    return row.id
