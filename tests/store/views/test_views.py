"""What pages tell about a loop, its experts and its versions, against numbers worked out by hand."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerKind
from services.contracts.consultations import ConsultationStatus
from services.contracts.ids import first_id_of, new_id
from services.contracts.rollouts import GroupStatus, Purpose
from services.contracts.tasks import Split
from services.store.core.transaction import Store
from services.store.loop import dead_letters
from services.store.stats.estimates import wilson_interval
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import LessonRow, PolicyVersionRow, UpdateLessonRow, UpdateRow
from services.store.tables.loop import (
    AnswerRow,
    AttemptRow,
    ConsultationRow,
    EvaluationRow,
    ExpertRow,
    GroupRow,
    RolloutRow,
)
from services.store.views import browse, curves, experts, under_way, versions
from tests.store.conftest import World

NOW = datetime.now(UTC)


def test_wilsons_interval_is_that_of_the_textbook() -> None:
    found = wilson_interval(8, 10)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 0) is None
    nothing = wilson_interval(0, 5)
    assert nothing is not None
    assert nothing.low == 0


def test_an_id_of_a_moment_is_below_every_id_made_from_then_on() -> None:
    moment = datetime.now(UTC)
    made = new_id()
    assert first_id_of(moment) <= made
    assert first_id_of(moment + timedelta(seconds=1)) > made
    assert first_id_of(moment).version == 7


def test_a_long_history_is_thinned_out_evenly_and_ends_with_the_newest() -> None:
    assert list(curves.choose_numbers(5, 10)) == [1, 2, 3, 4, 5]
    assert list(curves.choose_numbers(10, 5)) == [2, 4, 6, 8, 10]
    assert list(curves.choose_numbers(11, 5)) == [2, 5, 8, 11]
    assert list(curves.choose_numbers(0, 5)) == []


def update(session: Session, world: World, number: int, **metrics: object) -> UpdateRow:
    row = UpdateRow(
        lineage_id=world.lineage_id,
        number=number,
        status="applied",
        owner=new_id(),
        objective="distil",
        settings={},
        metrics=metrics,
        checkpoint_sha256="c",
        batch_sha256="b",
        applied_at=NOW - timedelta(minutes=10 * (4 - number)),
    )
    session.add(row)
    session.flush()
    return row


@pytest.mark.integration
def test_curves_hold_every_number_and_a_gap_where_an_update_has_none(store: Store, world: World) -> None:
    with store.transaction() as session:
        update(session, world, 1, loss=0.5, kl=0.25)
        update(session, world, 2, loss=0.25, note="no number", flag=True)
        found = curves.read(session, world.lineage_id)
    assert found.numbers == (1, 2)
    assert found.series == {"loss": (0.5, 0.25), "kl": (0.25, None)}


@pytest.mark.integration
def test_rates_are_those_of_the_last_minutes(store: Store, world: World) -> None:
    with store.transaction() as session:
        judge = world.expert(session)
        first, second = world.drawn(session, world.task(session, "t"))
        answered(session, first, judge, score=1.0)
        # three updates, the first of them 30 minutes ago, of 8 lessons and 60 seconds each: 31 minutes of work
        for number in (1, 2, 3):
            update(session, world, number, num_rows=8, seconds=60.0)
        found = under_way.rates(session, world.lineage_id, NOW + timedelta(seconds=1))
    assert second.group_id == first.group_id
    assert found.rollouts_per_minute == 1.0  # two within two minutes
    assert found.answers_per_minute == 0.5
    assert found.seconds_per_update == 60.0
    assert found.updates_per_hour == pytest.approx(60 * 3 / 31, rel=1e-2)
    assert found.lessons_per_minute == pytest.approx(24 / 31, rel=1e-2)


@pytest.mark.integration
def test_a_flood_is_measured_by_its_newest_rows(store: Store, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_way, "MAX_COUNTED", 4)
    with store.transaction() as session:
        rows = world.drawn(session, world.task(session, "t"), size=8)
        for index, row in enumerate(rows):
            row.created_at = NOW - timedelta(seconds=10 * (8 - index))
        session.flush()
        found = under_way.rates(session, world.lineage_id, NOW)
    assert found.rollouts_per_minute == 6.0  # the newest four came within 40 seconds


@pytest.mark.integration
def test_queues_tell_what_waits_where(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
        task = world.task(session)
        world.drawn(session, task, size=3)
        lesson(session, world, world.drawn(session, task, size=1)[0], status="ready", late=True)
        found = under_way.queues(session, world.lineage_id)
    assert (found.draws, found.consultations, found.late_lessons, found.lessons) == (0, 4, 1, 0)
    assert (found.dead_draws, found.dead_consultations, found.people) == (0, 0, 0)


def answered(
    session: Session,
    rollout: RolloutRow,
    expert: ExpertRow,
    *,
    score: float | None = None,
    seconds: float = 1.0,
    status: str = "answered",
) -> AnswerRow:
    """A settled question, its one try and its answer."""
    question = (
        session.query(ConsultationRow).filter_by(rollout_id=rollout.id, expert_id=expert.id).one_or_none()
    ) or ConsultationRow(
        lineage_id=rollout.lineage_id,
        rollout_id=rollout.id,
        expert_id=expert.id,
        expert_version="1",
        stage=1,
        ask={},
        deadline=NOW,
        status=status,
    )
    session.add(question)
    session.flush()
    session.add(
        AttemptRow(
            consultation_id=question.id,
            number=1,
            outcome="ok",
            started_at=NOW,
            ended_at=NOW + timedelta(seconds=seconds),
        )
    )
    said = AnswerRow(
        id=new_id(),
        lineage_id=rollout.lineage_id,
        consultation_id=question.id,
        rollout_id=rollout.id,
        split=rollout.split,
        expert_id=expert.id,
        expert_version="1",
        score=score,
    )
    session.add(said)
    session.flush()
    return said


def lesson(
    session: Session, world: World, rollout: RolloutRow, *, status: str = "used", late: bool = False
) -> LessonRow:
    row = LessonRow(
        lineage_id=world.lineage_id,
        rollout_id=rollout.id,
        split="train",
        purpose="train",
        group_id=rollout.group_id,
        ordinal=0,
        late=late,
        status=status,
    )
    session.add(row)
    session.flush()
    return row


@pytest.mark.integration
def test_latency_is_told_by_percentiles_of_the_tries_that_were_answered(store: Store, world: World) -> None:
    with store.transaction() as session:
        rows = world.drawn(session, world.task(session), size=4)
        judge = world.expert(session)
        for row, seconds in zip(rows, (4.0, 1.0, 3.0, 2.0), strict=True):
            answered(session, row, judge, score=1.0, seconds=seconds)
        failed = world.drawn(session, world.task(session, "u"), size=1)[0]
        answered(session, failed, judge, seconds=100.0)
        session.query(AttemptRow).filter(AttemptRow.ended_at > NOW + timedelta(seconds=50)).one().outcome = "failed"
        session.flush()
        found = experts.latency(session, judge.id)
        nobody = experts.latency(session, world.expert(session, "idle").id)
    assert found is not None
    assert found.num == 4
    assert (found.p50, found.p95, found.p99) == pytest.approx((2.5, 3.85, 3.97))
    assert nobody is None


@pytest.mark.integration
def test_agreement_is_counted_rollout_by_rollout(store: Store, world: World) -> None:
    with store.transaction() as session:
        rows = world.drawn(session, world.task(session), size=4)
        tests, style = world.expert(session, "tests"), world.expert(session, "style", verifier=False)
        people = world.expert(session, "human", verifier=False)
        for row, truth, opinion in zip(rows, (1.0, 1.0, 0.0, 0.0), (0.9, 0.2, 0.1, 0.4), strict=True):
            answered(session, row, tests, score=truth)
            answered(session, row, style, score=opinion)
        decided = answered(session, rows[1], people, score=0.0)
        session.add(
            CorrectionRow(
                lineage_id=world.lineage_id,
                consultation_id=decided.consultation_id,
                rollout_id=rows[1].id,
                split="train",
                status="submitted",
                verdict="corrected",
            )
        )
        session.flush()
        found, alone = experts.read(session, style), experts.read(session, tests)
    assert found.with_verifiers is not None
    assert (found.with_verifiers.num, found.with_verifiers.num_agreed) == (4, 3)
    assert found.with_people is not None
    assert (found.with_people.num, found.with_people.num_agreed) == (1, 1)
    assert alone.with_verifiers is None  # no other verifier judged: it is not compared with itself
    assert alone.with_people is not None
    assert alone.with_people.num_agreed == 0


@pytest.mark.integration
def test_what_an_expert_gave_is_its_part_of_the_terms_of_the_newest_updates(store: Store, world: World) -> None:
    with store.transaction() as session:
        rows = world.drawn(session, world.task(session), size=2)
        solver, judge = world.expert(session, "solver", kinds=(AnswerKind.SCORE,)), world.expert(session, "judge")
        told = [answered(session, row, solver, score=1.0) for row in rows]
        verdict = answered(session, rows[0], judge, score=1.0)
        made = update(session, world, 1)
        terms: Sequence[tuple[RolloutRow, float, list[UUID]]] = (
            (rows[0], 0.6, [told[0].id, verdict.id]),
            (rows[1], 0.4, [told[1].id]),
        )
        for row, share, answers in terms:
            session.add(
                UpdateLessonRow(
                    update_id=made.id,
                    lesson_id=lesson(session, world, row).id,
                    status="applied",
                    terms=[{"answers": [str(one) for one in answers], "share": share, "cost": share * 2}],
                )
            )
        session.flush()
        found = experts.given(session, world.lineage_id)
    assert found[solver.id].num_lessons == 2
    assert found[solver.id].share == pytest.approx(0.6 / 2 + 0.4)
    assert found[solver.id].cost == pytest.approx((1.2 + 0.8) / 2)
    assert found[judge.id].num_lessons == 1
    assert found[judge.id].share == pytest.approx(0.3)


@pytest.mark.integration
def test_practice_is_the_verdicts_on_train_rollouts_by_version(store: Store, world: World) -> None:
    with store.transaction() as session:
        rows = world.drawn(session, world.task(session), size=5)
        for row, score in zip(rows, (1.0, 1.0, 0.0, 0.6, None), strict=True):
            row.score = score
        world.drawn(session, world.task(session, "h", split=Split.HELDOUT), purpose=Purpose.EVALUATION)[0].score = 1.0
        session.flush()
        found = versions.practice(session, world.lineage_id, {"base", "main-v9"})
    assert set(found) == {"base"}
    assert (found["base"].num_judged, found["base"].num_passed) == (4, 3)
    assert found["base"].interval == wilson_interval(3, 4)


@pytest.mark.integration
def test_a_version_is_compared_with_the_newest_before_it_that_was_measured_alike(store: Store, world: World) -> None:
    with store.transaction() as session:
        for number in (1, 2, 3):
            session.add(
                PolicyVersionRow(
                    lineage_id=world.lineage_id,
                    number=number,
                    name=f"main-v{number}",
                    status="superseded",
                    artifact_sha256="a",
                )
            )
        task = world.task(session, "held", split=Split.HELDOUT)
        measured = {
            name: evaluation(session, world, task.id, name, num_samples, passes)
            for name, num_samples, passes in (("base", 2, 0), ("main-v1", 4, 1), ("main-v3", 2, 2))
        }
        third = session.query(PolicyVersionRow).filter_by(name="main-v3").one()
        [found] = versions.compare(session, third)
        base = session.query(PolicyVersionRow).filter_by(number=0).one()
        assert versions.compare(session, base) == []
    assert (found.before_id, found.after_id) == (measured["base"], measured["main-v3"])  # v1 had other settings
    assert {change.reason for change in found.headline} == {"one temperature only"}
    by_k = {change.k: change for change in found.changes}
    assert sorted(by_k) == [1, 2]
    before, after, rise = by_k[1].before, by_k[1].after, by_k[1].rise
    assert before is not None
    assert after is not None
    assert rise is not None
    assert (before.mean, after.mean, rise.mean) == (0.0, 1.0, 1.0)


def evaluation(session: Session, world: World, task_id: UUID, version: str, num_samples: int, passes: int) -> UUID:
    row = EvaluationRow(
        lineage_id=world.lineage_id,
        policy_version=version,
        split="heldout",
        status="done",
        settings={"num_samples": num_samples, "seed": 0, "policy_version": version},
    )
    session.add(row)
    session.flush()
    group = GroupRow(
        lineage_id=world.lineage_id,
        task_id=task_id,
        split="heldout",
        purpose="evaluation",
        evaluation_id=row.id,
        policy_version=version,
        size=num_samples,
        sampling={},
        status="sampled",
    )
    session.add(group)
    session.flush()
    for index in range(num_samples):
        session.add(
            RolloutRow(
                lineage_id=world.lineage_id,
                task_id=task_id,
                split="heldout",
                purpose="evaluation",
                group_id=group.id,
                index_in_group=index,
                status="ready",
                policy_version=version,
                prompt_token_ids=[1],
                token_ids=[2],
                action_mask=[True],
                tokenizer_hash="a" * 64,
                text="x",
                finish_reason="stop",
                score=float(index < passes),
            )
        )
    session.flush()
    return row.id


@pytest.mark.integration
def test_dead_consultations_are_asked_again_all_at_once_but_not_of_experts_that_left(
    store: Store, world: World, num_statements: Callable[[Callable[[], object]], int]
) -> None:
    with store.transaction() as session:
        judge, gone = world.expert(session, "judge"), world.expert(session, "gone", verifier=False)
        world.drawn(session, world.task(session), size=2)
        for question in session.query(ConsultationRow):
            question.status, question.reason = "asked", None
            session.flush()
            question.status, question.reason = "dead", "connection refused"
            session.flush()
        gone.status = "retired"
        session.flush()
        assert session.query(ConsultationRow).filter_by(status="dead").count() == 4
        asked: list[UUID] = []
        num = num_statements(lambda: asked.extend(dead_letters.requeue_consultations(session, world.lineage_id)))
        again = [session.get_one(ConsultationRow, one) for one in asked]
    assert num == 2, "however many there are"
    assert len(asked) == 2
    assert {row.expert_id for row in again} == {judge.id}
    assert {row.status for row in again} == {ConsultationStatus.PENDING.value}


@pytest.mark.integration
def test_dead_draws_are_listed_with_their_task_and_tried_again(store: Store, world: World) -> None:
    with store.transaction() as session:
        task = world.task(session, "hard")
        row = GroupRow(
            lineage_id=world.lineage_id,
            task_id=task.id,
            split="train",
            purpose="train",
            size=4,
            sampling={},
            status="dead",
            reason="the policy did not answer",
            failures=5,
        )
        session.add(row)
        session.flush()
        [listed] = browse.list_draws(session, world.lineage_id, status=GroupStatus.DEAD, cursor=None, limit=10).items
        assert (listed.task_key, listed.reason) == ("hard", "the policy did not answer")
        assert dead_letters.requeue_draws(session, world.lineage_id) == 1
        assert (row.status, row.failures, row.reason) == ("pending", 0, None)
        assert dead_letters.requeue_draws(session, world.lineage_id) == 0
        with pytest.raises(dead_letters.DrawNotFound):
            dead_letters.requeue_draw(session, new_id())
