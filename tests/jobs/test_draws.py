"""Which draws are made when, and by which version."""

import pytest
from sqlalchemy import func, select, update

from services.contracts.policies import GateReport
from services.contracts.rollouts import Purpose, Sampling
from services.jobs.sample import sample
from services.store.core.transaction import Store
from services.store.ledger import policies
from services.store.loop import groups, lineages, switches
from services.store.tables.loop import GroupRow, RolloutRow
from services.store.views import status
from tests.store.conftest import World

pytestmark = pytest.mark.integration


@pytest.fixture
def versions() -> dict[str, float]:
    """What the policy server holds: at first the base alone, as after every start."""
    return {"base": 0.5}


def plan(store: Store, world: World, *purposes: Purpose) -> list[GroupRow]:
    """Draws of one rollout each."""
    with store.transaction() as session:
        return [
            groups.add(session, world.task(session, f"t{i}"), purpose=purpose, size=1, sampling=Sampling())
            for i, purpose in enumerate(purposes)
        ]


def draw_again(store: Store, group: GroupRow) -> None:
    """As the sweep does, once its pause is over."""
    with store.transaction() as session:
        session.execute(update(GroupRow).values(not_before=func.now()))
    sample([str(group.id)])


def waits(store: Store) -> list[str]:
    with store.transaction() as session:
        lineage = lineages.get(session, "main")
        return status.status(session, lineage, max_backlog=48, max_groups_per_task=8, group_size=8).waits_for


@pytest.mark.usefixtures("worker")
def test_draws_wait_for_the_version_that_serves_and_are_never_made_by_another(
    store: Store, world: World, versions: dict[str, float]
) -> None:
    with store.transaction() as session:
        row = policies.add_candidate(session, world.lineage_id, artifact_sha256="d" * 64, update_number=1)
        policies.serve(session, row.id, GateReport(checks=[]))
    [group] = plan(store, world, Purpose.TRAIN)
    for _ in range(12):  # however long it takes
        draw_again(store, group)
    with store.transaction() as session:
        waiting = session.get_one(GroupRow, group.id)
        assert (waiting.status, waiting.failures) == ("pending", 0)
        assert not session.scalars(select(RolloutRow)).all()
    assert any("main-v1" in line for line in waits(store))

    versions["main-v1"] = 0.5  # the trainer has brought it back
    draw_again(store, group)
    with store.transaction() as session:
        assert session.scalars(select(RolloutRow.policy_version)).all() == ["main-v1"]
    assert not any("main-v1" in line for line in waits(store))


def due(store: Store, max_in_flight: int = 4) -> set[object]:
    """The draws sent now."""
    with store.transaction() as session:
        return set(groups.take_due(session, max_in_flight=max_in_flight, resend_seconds=30))


def test_a_paused_loop_draws_nothing_that_was_planned_and_evaluations_go_on(store: Store, world: World) -> None:
    train, evaluation = plan(store, world, Purpose.TRAIN, Purpose.EVALUATION)
    with store.transaction() as session:
        switches.switch(session, world.lineage_id, sampling=False, training=False)
    assert due(store) == {evaluation.id}
    assert any("paused" in line for line in waits(store))
    with store.transaction() as session:
        switches.switch(session, world.lineage_id, sampling=True, training=True)
    assert due(store) == {train.id}
    assert not any("paused" in line for line in waits(store))


def test_an_evaluation_leaves_the_loop_a_share_of_the_draws(store: Store, world: World) -> None:
    planned = plan(store, world, *[Purpose.EVALUATION] * 8, *[Purpose.TRAIN] * 3)
    trains = {group.id for group in planned if group.purpose == Purpose.TRAIN.value}
    with store.transaction() as session:
        switches.switch(session, world.lineage_id, sampling=True, training=True)
    assert len(due(store, max_in_flight=8) & trains) == 2


@pytest.mark.parametrize(("wanted", "drawn"), [(None, 24), (3, 3), (24, 24), (500, 24)])
def test_an_answer_is_no_longer_than_its_task_and_the_settings_want(
    store: Store, world: World, wanted: int | None, drawn: int
) -> None:
    sampling = Sampling(max_new_tokens=24, temperature=0.5)
    with store.transaction() as session:
        task = world.task(session)
        if wanted is not None:
            task.metadata_ = {**task.metadata_, "max_new_tokens": wanted}
        group = groups.add(session, task, purpose=Purpose.TRAIN, size=2, sampling=sampling)
        assert group.sampling == {**sampling.model_dump(mode="json"), "max_new_tokens": drawn}
