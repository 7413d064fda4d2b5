"""What became of a correction: measured under the versions around the update that used it, once, and honestly."""

import math
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from services.contracts.corrections import CorrectionSubmit
from services.contracts.ids import new_id
from services.contracts.policies import GateReport
from services.contracts.updates import TermKind, TermRecord
from services.jobs.effects import find_changed, measure
from services.jobs.maintain import maintain
from services.jobs.runtime import runtime
from services.store.core.transaction import Store
from services.store.corrections import claims, corrections, desk, effects
from services.store.ledger import lesson_facts, lessons, policies, updates
from services.store.ledger.updates import Contribution
from services.store.loop import tasks
from services.store.tables.corrections import EffectRow
from services.store.tables.ledger import UpdateLessonRow
from services.store.tables.loop import AnswerRow, RolloutRow
from services.web.presenters import progress
from tests.ports import free_port
from tests.rows import start_update
from tests.store.conftest import World
from tests.web.correcting import Queue, Said

PROBABILITIES = {"base": 0.25, "main-v1": 0.5}


@pytest.mark.parametrize(
    ("answered", "corrected", "changed"),
    [
        ([1, 2, 3], [1, 9, 3], (1, 2)),
        ([1, 2, 3], [1, 2, 3, 4, 5], (3, 5)),
        ([1, 2, 3, 4, 5], [9, 2, 3, 4, 8], (0, 5)),
        ([1, 2, 3], [1, 3], (1, 2)),  # a token was left out: the one that follows instead
        ([1, 2, 3], [1, 2], (1, 2)),  # the end was left out
        ([1, 2], [3, 4], (0, 2)),
        ([1, 2], [1, 2], (0, 2)),
    ],
)
def test_the_changed_part_goes_from_the_first_new_token_to_the_last(
    answered: list[int], corrected: list[int], changed: tuple[int, int]
) -> None:
    assert find_changed(answered, corrected) == changed


@pytest.fixture
def queue(store: Store, world: World) -> Queue:
    """A queue with one expert beside the people."""
    made = Queue(store, world)
    made.experts("judge")
    return made


@pytest.fixture
def versions() -> dict[str, float]:
    """What the policy server holds; tests take versions away."""
    return dict(PROBABILITIES)


def correct(queue: Queue, said: CorrectionSubmit) -> UUID:
    """One answer `abc` with this decision about it."""
    item = queue.ask(queue.draw("t", "What is t?", "abc", {"judge": Said(score=0.0)}))
    person, _ = queue.person("ana")
    with queue.store.transaction() as session:
        claims.claim(session, queue.world.lineage_id, person)
        corrections.submit(session, item, person, said)
    return item


def train(queue: Queue) -> None:
    """An applied update that used every late lesson's answers."""
    lineage, owner = queue.world.lineage_id, new_id()
    with queue.store.transaction() as session:
        held = lessons.claim(session, lineage, owner, num_rollouts=0, max_late=8, lease_seconds=60)
        step = start_update(session, lineage, owner, [lesson.id for lesson in held])
        facts = lesson_facts.load(session, held)
        done = [
            Contribution(
                lesson_id=fact.lesson_id,
                terms=(
                    TermRecord(
                        kind=TermKind.CONDITIONED, answers=[one.id for one in fact.answers], weight=1.0, share=1.0
                    ),
                ),
            )
            for fact in facts
        ]
        updates.apply(session, step.id, owner, checkpoint_sha256="c", metrics={}, contributions=done)


def publish(queue: Queue, update_number: int = 1) -> None:
    """The next version serves."""
    with queue.store.transaction() as session:
        row = policies.add_candidate(
            session, queue.world.lineage_id, artifact_sha256="d" * 64, update_number=update_number
        )
        policies.serve(session, row.id, GateReport(checks=[]))


def effect_ids(queue: Queue) -> list[str]:
    with queue.store.transaction() as session:
        return [str(one) for one in session.scalars(select(EffectRow.id).order_by(EffectRow.id))]


def sweep(queue: Queue) -> list[str]:
    """The sweep, long after the last one, and the ids it plans."""
    with queue.store.transaction() as session:
        session.execute(update(EffectRow).values(not_before=func.now(), sent_at=None))
    maintain()
    return effect_ids(queue)


@pytest.mark.integration
@pytest.mark.usefixtures("worker")
def test_a_correction_is_measured_under_the_versions_around_its_update(queue: Queue) -> None:
    item = correct(queue, CorrectionSubmit(verdict="corrected", text="abXY"))
    train(queue)
    assert sweep(queue) == []  # nothing with this update is published
    publish(queue)
    measure(sweep(queue))
    with queue.store.transaction() as session:
        found = desk.outcome(session, corrections.get(session, item))
    before, after = found.effects
    assert [(one.side, one.version, one.answer) for one in found.effects] == [
        ("before", "base", "base"),
        ("after", "main-v1", "main-v1"),
    ]
    assert (after.num_tokens, after.span_start, after.span_end) == (4, 2, 4)
    assert before.span_logprob == pytest.approx(2 * math.log(0.25))
    assert after.span_logprob == pytest.approx(2 * math.log(0.5))
    assert after.text_logprob == pytest.approx(4 * math.log(0.5))
    [use] = progress.by_update(found)
    assert use.before is not None
    assert use.after is not None
    assert use.before.token_probability == pytest.approx(0.25)
    assert use.after.token_probability == pytest.approx(0.5)
    assert use.before.span_bits == pytest.approx(4)
    assert use.after.span_bits == pytest.approx(2)


@pytest.mark.integration
@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("most", "answers"), [(3, ["bas", "mai"]), (900, ["base", "main-v1"]), (None, ["base", "main-v1"])]
)
def test_a_version_answers_with_no_more_tokens_than_the_task_lets_an_answer_have(
    queue: Queue, most: int | None, answers: list[str]
) -> None:
    item = correct(queue, CorrectionSubmit(verdict="corrected", text="abXY"))
    with queue.store.transaction() as session:
        row = session.get_one(RolloutRow, corrections.get(session, item).rollout_id)
        task = tasks.get(session, row.task_id)
        task.metadata_ = task.metadata_ if most is None else task.metadata_ | {"max_new_tokens": most}
    train(queue)
    publish(queue)
    measure(sweep(queue))
    with queue.store.transaction() as session:
        assert [one.answer for one in effects.of_corrections(session, [item])[item]] == answers


@pytest.mark.integration
@pytest.mark.usefixtures("worker")
def test_an_answer_that_was_fine_is_measured_on_its_own_tokens(queue: Queue) -> None:
    item = correct(queue, CorrectionSubmit(verdict="fine"))
    train(queue)
    publish(queue)
    measure(sweep(queue))
    with queue.store.transaction() as session:
        _, after = effects.of_corrections(session, [item])[item]
    assert (after.num_tokens, after.span_start, after.span_end) == (3, 0, 3)
    assert after.text_logprob == pytest.approx(3 * math.log(0.5))


@pytest.mark.integration
@pytest.mark.usefixtures("worker")
def test_the_sweep_plans_each_side_once_and_a_message_that_comes_twice_measures_once(queue: Queue) -> None:
    correct(queue, CorrectionSubmit(verdict="corrected", text="abX"))
    train(queue)
    publish(queue)
    ids = sweep(queue)
    assert len(ids) == 2
    measure(ids)
    measure(ids)
    publish(queue)  # a later version changes nothing
    assert sweep(queue) == ids
    with queue.store.transaction() as session:
        assert session.scalars(select(EffectRow.attempts)).all() == [1, 1]
        assert effects.take_due(session, resend_seconds=0, limit=9) == []


@pytest.mark.integration
@pytest.mark.usefixtures("worker")
def test_a_version_that_is_no_longer_loaded_is_tried_again_and_then_said_to_be_gone(
    queue: Queue, versions: dict[str, float]
) -> None:
    item = correct(queue, CorrectionSubmit(verdict="corrected", text="abX"))
    train(queue)
    publish(queue)
    del versions["main-v1"]
    measure(sweep(queue))
    with queue.store.transaction() as session:
        before, after = effects.of_corrections(session, [item])[item]
    assert (before.status, after.status) == ("measured", "pending")
    for _ in range(effects.MAX_FAILURES):
        measure(sweep(queue))
    with queue.store.transaction() as session:
        found = desk.outcome(session, corrections.get(session, item))
    assert (found.effects[1].status, found.effects[1].reason) == ("gone", "version main-v1 is not loaded any more")
    assert "could not be measured" in progress.say(found)


@pytest.mark.integration
@pytest.mark.usefixtures("worker")
def test_a_policy_that_is_away_costs_no_tries(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    correct(queue, CorrectionSubmit(verdict="corrected", text="abX"))
    train(queue)
    publish(queue)
    ids = sweep(queue)
    runtime().close()
    runtime.cache_clear()
    with monkeypatch.context() as away:
        away.setenv("PRECEPTOR_POLICY_URL", f"http://127.0.0.1:{free_port()}")
        measure(ids)
        runtime().close()
        runtime.cache_clear()
    with queue.store.transaction() as session:
        assert session.scalars(select(EffectRow.failures)).all() == [0, 0]
    measure(sweep(queue))
    with queue.store.transaction() as session:
        assert set(session.scalars(select(EffectRow.status))) == {"measured"}


@pytest.mark.integration
def test_what_is_not_seen_is_not_claimed(queue: Queue) -> None:
    item = correct(queue, CorrectionSubmit(verdict="corrected", text="abX"))

    def say() -> str:
        with queue.store.transaction() as session:
            return progress.say(desk.outcome(session, corrections.get(session, item)))

    assert say() == "Submitted. No update has used it yet."
    train(queue)
    assert say() == "Used by update 1. Its effect is measured when a version with it is published."
    publish(queue)
    with queue.store.transaction() as session:
        effects.plan(session, queue.world.lineage_id)
    assert say() == "Used by update 1. Its effect is being measured."


@pytest.mark.integration
def test_an_update_that_used_no_correction_is_not_looked_at_again(queue: Queue) -> None:
    correct(queue, CorrectionSubmit(verdict="corrected", text="abX"))
    train(queue)
    with queue.store.transaction() as session:
        session.execute(update(UpdateLessonRow).values(terms=[]))
        session.execute(update(AnswerRow).where(AnswerRow.solution == "abX").values(status="withdrawn"))
    publish(queue)
    with queue.store.transaction() as session:
        effects.plan(session, queue.world.lineage_id)
        assert updates.get(session, queue.world.lineage_id, 1).effects_planned
    assert effect_ids(queue) == []
