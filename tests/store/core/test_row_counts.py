"""Tallies: what the status page counts is what the tables hold, at every moment, and nothing is counted to know it."""

from collections import Counter
from uuid import UUID

import pytest
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from services.contracts.experts import ConsultResult
from services.contracts.rollouts import Purpose
from services.contracts.sources import ContextSource
from services.contracts.tasks import Split
from services.store.core import row_counts
from services.store.core.transaction import Store
from services.store.loop import consultations, retention, settling
from services.store.tables.corrections import CorrectionRow
from services.store.tables.housekeeping import TallyChangeRow
from services.store.tables.ledger import LessonRow
from services.store.tables.loop import ConsultationRow, GroupRow, RolloutRow, TaskRow
from tests.store.conftest import World, show

pytestmark = pytest.mark.integration

NOUNS = ("task", "rollout_group", "rollout", "consultation", "lesson", "correction", "verdict")


def counted(session: Session) -> dict[str, Counter[tuple[str, str]]]:
    """What the tables hold, counted one row at a time."""
    rollouts = session.scalars(select(RolloutRow)).all()
    judged = [r for r in rollouts if r.score is not None and r.purpose == "train" and not r.shown]
    return {
        "task": Counter((t.domain, t.split) for t in session.scalars(select(TaskRow))),
        "rollout_group": Counter((g.purpose, g.status) for g in session.scalars(select(GroupRow))),
        "rollout": Counter((r.purpose, r.status) for r in rollouts),
        "consultation": Counter((str(c.expert_id), c.status) for c in session.scalars(select(ConsultationRow))),
        "lesson": Counter(("late" if n.late else "", n.status) for n in session.scalars(select(LessonRow))),
        "correction": Counter(("", c.status) for c in session.scalars(select(CorrectionRow))),
        "verdict": Counter((r.policy_version or "", "passed" if (r.score or 0) > 0.5 else "failed") for r in judged),
    }


def tallied(session: Session, lineage_id: UUID) -> dict[str, Counter[tuple[str, str]]]:
    found = row_counts.read(session, lineage_id, NOUNS)
    return {noun: Counter({(t.kind, t.word): t.num for t in found[noun]}) for noun in NOUNS}


def judge(session: Session, rollout: RolloutRow, score: float) -> None:
    """The first verifier's score, as a worker settles it."""
    session.flush()
    ids = consultations.pending_of(session, [rollout.id])
    for question in consultations.claim(session, ids, lease_seconds=60):
        settling.settle(session, question, ConsultResult(score=score))


def test_tallies_equal_the_tables_through_draws_verdicts_folds_and_deletions(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
        one = world.drawn(session, world.task(session, "one"), size=3)
        world.drawn(session, world.task(session, "held", split=Split.HELDOUT), purpose=Purpose.EVALUATION)
        world.external(session, world.task(session, "other", domain="code"))
        assert tallied(session, world.lineage_id) == counted(session)
    with store.transaction() as session:
        for rollout, score in zip(one, (1.0, 0.0, 0.75), strict=True):
            judge(session, session.get_one(RolloutRow, rollout.id), score)
    with store.transaction() as session:
        told = tallied(session, world.lineage_id)
        assert told == counted(session)
        assert told["verdict"] == {("base", "passed"): 2, ("base", "failed"): 1}
        assert told["lesson"] == {("", "ready"): 3}
        row_counts.fold(session)
        assert session.scalar(select(func.count()).select_from(TallyChangeRow)) == 0
        assert tallied(session, world.lineage_id) == told
    with store.transaction() as session:
        session.execute(delete(TaskRow).where(TaskRow.key == "nothing"))
        spare = world.task(session, "spare")
        row_counts.fold(session)
        session.delete(spare)
        session.flush()
        assert tallied(session, world.lineage_id) == counted(session)


def test_verdicts_on_what_a_teacher_drew_are_not_counted(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
        task = world.task(session)
        drawn = world.drawn(session, task, size=3, context=show(ContextSource.CORRECTION), num_shown=2)
        judge(session, drawn[0], 1.0)
        judge(session, drawn[1], 0.0)
        judge(session, drawn[2], 1.0)
        assert tallied(session, world.lineage_id) == counted(session)
        assert tallied(session, world.lineage_id)["verdict"] == {("base", "passed"): 1}
        drawn[1].score = 1.0  # a verdict that changes
        drawn[0].score = 0.25
        session.flush()
        assert tallied(session, world.lineage_id)["verdict"] == {("base", "failed"): 1}
        for statement in retention.deletions([drawn[0].group_id]):
            session.execute(statement)
        assert not tallied(session, world.lineage_id)["verdict"]


def test_what_is_rolled_back_was_never_counted(store: Store, world: World) -> None:
    def fail() -> None:
        with store.transaction() as session:
            world.task(session, "one")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with store.transaction() as session:
        assert row_counts.read(session, world.lineage_id, ("task",)) == {"task": []}


def test_the_sum_by_word_is_over_all_kinds_or_of_one() -> None:
    told = [
        row_counts.RowCount("a", "ready", 2),
        row_counts.RowCount("b", "ready", 3),
        row_counts.RowCount("b", "dead", 1),
    ]
    assert row_counts.by_word(told) == {"ready": 5, "dead": 1}
    assert row_counts.by_word(told, "b") == {"ready": 3, "dead": 1}
    assert row_counts.by_kind(told) == {"a": {"ready": 2}, "b": {"ready": 3, "dead": 1}}
