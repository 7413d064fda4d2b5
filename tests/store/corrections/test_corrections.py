"""The human queue in the store: its order, who holds what, drafts, and taking back."""

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, select, text, update

from services.contracts.answers import AnswerKind, Feedback, FeedbackSpan
from services.contracts.corrections import CorrectionSkip, CorrectionSubmit, DraftSave, SkipKind
from services.contracts.experts import ConsultAbstain, ConsultLater, ConsultResult, OwnKind
from services.contracts.ids import new_id
from services.contracts.sources import ContextSource
from services.contracts.updates import TermKind, TermRecord
from services.store.core.transaction import Store
from services.store.corrections import claims, corrections, desk, drafts, ranking, undo
from services.store.corrections.corrections import NothingChanged, NotYours
from services.store.corrections.drafts import DraftChanged, DraftNotTaken
from services.store.corrections.undo import TooLateToUndo
from services.store.ledger import lessons, updates
from services.store.ledger.updates import Contribution
from services.store.loop import consultations, rollouts, settling
from services.store.loop.consultations import ClaimedConsultation
from services.store.loop.settling import NotWaiting
from services.store.tables.corrections import CorrectionRow, DraftRow
from services.store.tables.ledger import LessonAnswerRow, LessonRow, UpdateLessonRow
from services.store.tables.loop import AnswerRow, AttemptRow, ConsultationRow, ExpertRow, GroupRow, RolloutRow, TaskRow
from services.store.teaching.material import find_fixed
from tests import rows
from tests.store.conftest import World, show
from tests.web.correcting import Queue, Said

pytestmark = pytest.mark.integration

READS = (AnswerKind.SCORE, AnswerKind.FEEDBACK)
CORRECTED = CorrectionSubmit(verdict="corrected", text="better")


@pytest.fixture
def queue(store: Store, world: World) -> Queue:
    """A queue with two experts beside the people."""
    made = Queue(store, world)
    made.experts("first", "second")
    return made


def put(
    queue: Queue,
    key: str,
    scores: tuple[float, float] = (0.0, 0.0),
    *,
    logprob: float = -0.5,
    asked_for: bool = False,
) -> UUID:
    """An item about an answer with these scores, whose every token had this logprob."""
    said = {"first": Said(score=scores[0]), "second": Said(score=scores[1])}
    return queue.ask(queue.draw(key, f"What is {key}?", "abc", said, logprobs=[logprob] * 3), asked_for=asked_for)


def claim(queue: Queue, person: UUID) -> UUID | None:
    with queue.store.transaction() as session:
        row = claims.claim(session, queue.world.lineage_id, person)
        return None if row is None else row.id


def submit(queue: Queue, item: UUID, person: UUID, said: CorrectionSubmit = CORRECTED) -> None:
    with queue.store.transaction() as session:
        corrections.submit(session, item, person, said)


def take_back(queue: Queue, item: UUID, person: UUID) -> None:
    with queue.store.transaction() as session:
        undo.take_back(session, item, person)


def expire_leases(queue: Queue) -> None:
    with queue.store.transaction() as session:
        session.execute(update(CorrectionRow).values(lease_until=func.now() - timedelta(seconds=1)))


def in_order(queue: Queue, num_items: int) -> list[UUID | None]:
    """The items in the order in which new people get them."""
    people = [queue.person(f"p{n}")[0] for n in range(num_items)]
    return [claim(queue, person) for person in people]


# --- the order -----------------------------------------------------------------------------------------------------


def test_the_queue_is_ordered_by_request_then_disagreement_then_uncertainty_then_age(queue: Queue) -> None:
    old_sure = put(queue, "old and sure", logprob=-0.1)
    unsure = put(queue, "unsure", logprob=-2.0)
    sure = put(queue, "sure", logprob=-0.1)
    asked = put(queue, "asked for", asked_for=True)
    little = put(queue, "little disagreement", (0.5, 0.75), logprob=-3.0)
    much = put(queue, "much disagreement", (0.0, 1.0))
    assert in_order(queue, 6) == [asked, much, little, unsure, sure, old_sure]


def test_disagreement_is_the_spread_of_independent_scores_and_uncertainty_is_nats_a_token(queue: Queue) -> None:
    row = queue.read(put(queue, "a", (0.25, 1.0), logprob=-1.5))
    assert (row.disagreement, row.uncertainty) == (0.75, 1.5)
    assert "differ by 0.75" in ranking.explain_choice(row)


def test_an_expert_on_probation_does_not_move_the_queue(queue: Queue) -> None:
    with queue.store.transaction() as session:
        session.execute(update(ExpertRow).where(ExpertRow.name == "second").values(status="probation"))
    item = put(queue, "a", (0.0, 1.0))
    assert queue.read(item).disagreement == 0
    with queue.store.transaction() as session:
        said = ranking.read_opinions(session, queue.read(item).rollout_id)
    assert [(one.expert, one.counted) for one in said] == [("first", True), ("second", False)]


def test_what_the_policy_says_of_itself_does_not_move_the_queue(queue: Queue) -> None:
    with queue.store.transaction() as session:
        own = {"own": OwnKind.SELF_EVALUATION.value}
        session.execute(update(ExpertRow).where(ExpertRow.name == "second").values(own))
    item = put(queue, "a", (0.0, 1.0))
    assert queue.read(item).disagreement == 0
    with queue.store.transaction() as session:
        said = ranking.read_opinions(session, queue.read(item).rollout_id)
    assert [(one.expert, one.counted) for one in said] == [("first", True), ("second", False)]


def test_an_answer_that_comes_after_the_item_moves_it(queue: Queue) -> None:
    with queue.store.transaction() as session:
        world = queue.world
        [rollout] = world.drawn(session, world.task(session), size=1)
        item = corrections.ask_for(session, rollout.id).id
        first, second = consultations.claim(session, consultations.pending_of(session, [rollout.id]), lease_seconds=60)
    spreads = []
    for question, score in ((first, 1.0), (second, 0.25)):
        with queue.store.transaction() as session:
            settling.settle(session, question, ConsultResult(score=score))
        spreads.append(queue.read(item).disagreement)
    assert spreads == [0.0, 0.75]


def test_tokens_the_policy_did_not_choose_say_nothing_of_its_uncertainty(queue: Queue) -> None:
    row = queue.read(put(queue, "a"))
    with queue.store.transaction() as session:
        rollout = rollouts.get(session, row.rollout_id)
        rollout.sampler_logprobs, rollout.action_mask = [-4.0, -2.0, -9.0], [True, True, False]
        assert ranking.measure_uncertainty(rollout) == 3.0
        rollout.sampler_logprobs = None
        assert ranking.measure_uncertainty(rollout) == 0.0


# --- who holds what ------------------------------------------------------------------------------------------------


def test_many_people_who_claim_at_once_all_hold_different_items(queue: Queue) -> None:
    items = {put(queue, f"t{n}") for n in range(8)}
    people = [queue.person(f"p{n}")[0] for n in range(8)]
    got: list[UUID | None] = []
    at_once([lambda person=person: got.append(claim(queue, person)) for person in people])
    assert set(got) == items


def test_a_person_who_claims_in_two_tabs_at_once_gets_one_item(queue: Queue) -> None:
    for n in range(4):
        put(queue, f"t{n}")
    person, _ = queue.person("ana")
    got: list[UUID | None] = []
    at_once([lambda: got.append(claim(queue, person)) for _ in range(4)])
    assert len(set(got)) == 1


def at_once(calls: Sequence[object]) -> None:
    """Call them all at the same moment, each in its own thread."""
    barrier = threading.Barrier(len(calls))

    def run(call: object) -> None:
        barrier.wait()
        assert callable(call)
        call()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_renewed_lease_outlives_the_sweep_and_one_that_ran_out_does_not(queue: Queue) -> None:
    lost, kept = put(queue, "lost"), put(queue, "kept")  # the newest is claimed first
    ana, ben = queue.person("ana")[0], queue.person("ben")[0]
    assert (claim(queue, ana), claim(queue, ben)) == (kept, lost)
    expire_leases(queue)
    with queue.store.transaction() as session:
        claims.renew(session, kept, ana)
        claims.free_expired(session)
    assert queue.read(kept).person_id == ana
    with pytest.raises(NotYours, match="in the queue again"), queue.store.transaction() as session:
        claims.renew(session, lost, ben)


def test_an_item_given_back_goes_to_the_next_person(queue: Queue) -> None:
    item = put(queue, "a")
    ana, ben = queue.person("ana")[0], queue.person("ben")[0]
    claim(queue, ana)
    with queue.store.transaction() as session:
        claims.release(session, item, ana)
    assert claim(queue, ben) == item
    with pytest.raises(NotYours, match="someone else"), queue.store.transaction() as session:
        claims.release(session, item, ana)


def test_claiming_a_named_item_gives_back_the_one_that_was_held(queue: Queue) -> None:
    first, second = put(queue, "first"), put(queue, "second")
    ana, ben = queue.person("ana")[0], queue.person("ben")[0]
    assert claim(queue, ana) == second
    with queue.store.transaction() as session:
        claims.claim_one(session, first, ana)
    assert queue.read(second).status == "open"
    with pytest.raises(NotYours, match="held by someone else"), queue.store.transaction() as session:
        claims.claim_one(session, first, ben)
    expire_leases(queue)
    with queue.store.transaction() as session:
        assert claims.claim_one(session, first, ben).person_id == ben


def test_a_page_that_was_left_untouched_is_soon_for_others_and_one_with_a_draft_is_not(queue: Queue) -> None:
    item = put(queue, "a")
    ana, _ = queue.person("ana")
    claim(queue, ana)
    leases = []
    for draft in (None, "begun"):
        with queue.store.transaction() as session:
            claims.renew(session, item, ana)
        if draft:
            save(queue, item, ana, draft, 0)
        with queue.store.transaction() as session:
            claims.leave(session, item, ana)
        with queue.store.transaction() as session:
            leases.append(session.scalar(select(CorrectionRow.lease_until - func.now())))
    assert leases[0] is not None
    assert leases[1] is not None
    assert leases[0] <= claims.LEAVING < leases[1]


# --- drafts --------------------------------------------------------------------------------------------------------


def save(queue: Queue, item: UUID, person: UUID, text: str, version: int) -> int:
    with queue.store.transaction() as session:
        row = corrections.lock(session, item)
        return drafts.save(session, row, person, DraftSave(version=version, text=text)).version


def skip(queue: Queue, item: UUID, person: UUID, reason: str = "not mine") -> None:
    with queue.store.transaction() as session:
        corrections.skip(session, item, person, CorrectionSkip(reason=reason))


def test_nobody_is_given_again_what_they_skipped(queue: Queue) -> None:
    item = put(queue, "a")
    people = [queue.person(name)[0] for name in ("ana", "ben", "cem")]
    for person in people:
        assert claim(queue, person) == item
        skip(queue, item, person)
    assert [claim(queue, person) for person in people] == [None, None, None]
    with queue.store.transaction() as session:
        left = desk.count_left(session, queue.world.lineage_id, people[0])
    assert (left.open, left.skipped_by_others) == (0, 0)
    dan, _ = queue.person("dan")
    assert claim(queue, dan) == item
    with queue.store.transaction() as session:
        claims.release(session, item, dan)
    assert claim(queue, people[0]) is None
    with queue.store.transaction() as session:
        assert claims.claim_one(session, item, people[0]).skipped_by == people[1:]


def test_an_item_that_is_asked_for_again_is_for_everybody_and_keeps_nobodys_words(queue: Queue) -> None:
    item = put(queue, "a")
    ana, _ = queue.person("ana")
    assert claim(queue, ana) == item
    skip(queue, item, ana, "I know its author")
    queue.ask(queue.read(item).rollout_id)
    row = queue.read(item)
    assert (row.status, row.person_id, row.skip_kind, row.skip_reason) == ("open", None, None, None)
    assert claim(queue, ana) == item


def test_what_was_skipped_is_found_in_the_queues_order_by_an_index(queue: Queue) -> None:
    with queue.store.transaction() as session:
        session.execute(text("SET LOCAL enable_seqscan = off"))
        session.execute(text("SET LOCAL enable_bitmapscan = off"))
        plan = session.scalars(
            text(
                "EXPLAIN SELECT id FROM correction WHERE status = 'skipped'"
                " AND lineage_id = '00000000-0000-0000-0000-000000000000'"
                " ORDER BY priority DESC, disagreement DESC, uncertainty DESC, id DESC LIMIT 1"
            )
        ).all()
    assert "ix_correction_skipped" in str(plan)
    assert "Sort" not in str(plan)


def test_two_tabs_never_overwrite_each_other_unseen(queue: Queue) -> None:
    item = put(queue, "a")
    ana, _ = queue.person("ana")
    claim(queue, ana)
    assert save(queue, item, ana, "one", 0) == 1
    assert save(queue, item, ana, "two", 1) == 2
    assert save(queue, item, ana, "two", 1) == 2  # the same words again: the reply was lost
    with pytest.raises(DraftChanged, match="version 2 was saved"):
        save(queue, item, ana, "of the other tab", 1)
    with queue.store.transaction() as session:
        assert drafts.get(session, item, ana).text == "two"


def test_a_lease_that_ran_out_keeps_the_draft_and_says_that_the_item_is_gone(queue: Queue) -> None:
    item = put(queue, "a")
    ana, ben = queue.person("ana")[0], queue.person("ben")[0]
    claim(queue, ana)
    save(queue, item, ana, "half", 0)
    expire_leases(queue)
    assert claim(queue, ben) == item
    with queue.store.transaction() as session:
        saved = drafts.save(session, corrections.lock(session, item), ana, DraftSave(version=1, text="half and more"))
    assert (saved.held, saved.lease_until, saved.version) == (False, None, 2)
    with pytest.raises(NotYours):
        submit(queue, item, ana)


def test_who_comes_back_gets_the_item_of_their_draft_first(queue: Queue) -> None:
    item = put(queue, "a")
    ana, _ = queue.person("ana")
    claim(queue, ana)
    save(queue, item, ana, "half", 0)
    expire_leases(queue)
    with queue.store.transaction() as session:
        claims.free_expired(session)
    put(queue, "more urgent", asked_for=True)
    assert claim(queue, ana) == item


def test_submitting_ends_the_draft_and_a_late_save_does_not_bring_it_back(queue: Queue) -> None:
    item = put(queue, "a")
    ana, _ = queue.person("ana")
    claim(queue, ana)
    save(queue, item, ana, "half", 0)
    submit(queue, item, ana)
    with pytest.raises(DraftNotTaken, match="is submitted"):
        save(queue, item, ana, "half", 1)
    with queue.store.transaction() as session:
        assert session.scalar(select(func.count()).select_from(DraftRow)) == 0


def test_nobody_keeps_a_draft_of_what_they_never_claimed(queue: Queue) -> None:
    item = put(queue, "a")
    with pytest.raises(DraftNotTaken, match="not yours"):
        save(queue, item, queue.person("ana")[0], "mine", 0)


# --- deciding and taking back --------------------------------------------------------------------------------------


def test_a_correction_that_changes_nothing_is_refused(queue: Queue) -> None:
    item = put(queue, "a")
    ana, _ = queue.person("ana")
    claim(queue, ana)
    with pytest.raises(NothingChanged):
        submit(queue, item, ana, CorrectionSubmit(verdict="corrected", text="abc"))
    assert queue.read(item).status == "claimed"


def test_a_text_that_an_editor_alone_changed_is_kept_as_fine(queue: Queue) -> None:
    item = put(queue, "a")
    ana, _ = queue.person("ana")
    claim(queue, ana)
    submit(queue, item, ana, CorrectionSubmit(verdict="corrected", text="abc\r\n", comment="good"))
    row = queue.read(item)
    assert (row.status, row.verdict, row.text, row.comment) == ("submitted", "fine", None, "good")


def test_a_correction_learns_no_newline_that_an_editor_added(queue: Queue) -> None:
    item = put(queue, "a")
    ana, _ = queue.person("ana")
    claim(queue, ana)
    submit(queue, item, ana, CorrectionSubmit(verdict="corrected", text="abd\n"))
    row = queue.read(item)
    assert (row.verdict, row.text) == ("corrected", "abd")


def test_a_skip_says_why_in_a_word_or_in_words(queue: Queue) -> None:
    item = put(queue, "a")
    ana, _ = queue.person("ana")
    claim(queue, ana)
    with queue.store.transaction() as session:
        corrections.skip(session, item, ana, CorrectionSkip(kind=SkipKind.UNCLEAR))
    assert (queue.read(item).skip_kind, queue.read(item).skip_reason) == ("unclear", None)
    assert claim(queue, ana) is None
    with pytest.raises(ValueError, match="give a `reason`"):
        CorrectionSkip()
    take_back(queue, item, ana)
    assert (queue.read(item).status, queue.read(item).person_id) == ("claimed", ana)


def test_what_was_taken_back_is_claimed_again_with_its_words_and_trains_nothing(queue: Queue) -> None:
    item = put(queue, "a")
    ana, _ = queue.person("ana")
    claim(queue, ana)
    remark = FeedbackSpan(start=0, end=1, text="this")
    submit(queue, item, ana, CorrectionSubmit(verdict="corrected", text="better", comment="why", spans=[remark]))
    take_back(queue, item, ana)
    row = queue.read(item)
    assert (row.status, row.person_id, row.verdict, row.text) == ("claimed", ana, None, None)
    with queue.store.transaction() as session:
        draft = drafts.get(session, item, ana)
        question = consultations.get(session, row.consultation_id)
        late = session.scalars(select(LessonRow).where(LessonRow.late)).one()
        answer = session.scalars(select(AnswerRow).where(AnswerRow.consultation_id == row.consultation_id)).one()
        assert lessons.count_ready_late(session, queue.world.lineage_id) == 0
    assert (draft.text, draft.comment, draft.spans) == ("better", "why", [remark])
    assert (question.status, late.status, answer.status) == ("waiting", "withdrawn", "withdrawn")
    assert (answer.solution, answer.feedback) == (None, None), "its words are the person's draft now, and nowhere else"
    submit(queue, item, ana, CorrectionSubmit(verdict="fine"))
    with queue.store.transaction() as session:
        assert lessons.count_ready_late(session, queue.world.lineage_id) == 1


def test_what_a_teacher_drew_that_was_shown_what_was_taken_back_trains_nothing(queue: Queue) -> None:
    item = put(queue, "a")
    ana, _ = queue.person("ana")
    claim(queue, ana)
    submit(queue, item, ana)
    with queue.store.transaction() as session:
        row = queue.read(item)
        answer = session.scalars(select(AnswerRow).where(AnswerRow.consultation_id == row.consultation_id)).one()
        task = session.get_one(TaskRow, session.get_one(RolloutRow, row.rollout_id).task_id)
        context = show(ContextSource.CORRECTION, answer.id, words="better")
        [drawn] = queue.world.drawn(session, task, 1, context=context, num_shown=1)
        for asked in consultations.claim(session, consultations.pending_of(session, [drawn.id]), lease_seconds=60):
            settling.settle(session, asked, ConsultResult(score=1.0))
        rollouts.advance(session, drawn.id)
        lesson = session.scalars(select(LessonRow).where(LessonRow.rollout_id == drawn.id)).one()
        assert lesson.status == "ready"
    take_back(queue, item, ana)
    with queue.store.transaction() as session:
        assert session.get_one(LessonRow, lesson.id).status == "withdrawn"
        assert session.get_one(RolloutRow, drawn.id).text == ""
        assert (session.get_one(GroupRow, drawn.group_id).context or {})["messages"] == []


def correct_before_the_readers(queue: Queue, person: UUID, said: ConsultResult | ConsultAbstain) -> UUID:
    """An item that was decided before the experts' first answers came, so that a second one was shown the decision."""
    with queue.store.transaction() as session:
        queue.world.expert(session, "reader", kinds=READS, verifier=False, needs_answers=True)
        [rollout] = queue.world.drawn(session, queue.world.task(session), size=1)
        item = corrections.ask_for(session, rollout.id).id
        questions = consultations.claim(session, consultations.pending_of(session, [rollout.id]), lease_seconds=60)
        claims.claim_one(session, item, person)
    submit(queue, item, person)
    for question in questions:
        with queue.store.transaction() as session:
            settling.settle(session, question, said)
    return item


def question_of(queue: Queue, item: UUID, expert: str = "reader") -> ConsultationRow:
    with queue.store.transaction() as session:
        return session.scalars(
            select(ConsultationRow)
            .join(ExpertRow, ExpertRow.id == ConsultationRow.expert_id)
            .join(CorrectionRow, CorrectionRow.rollout_id == ConsultationRow.rollout_id)
            .where(CorrectionRow.id == item, ExpertRow.name == expert)
        ).one()


def ask_reader(queue: Queue, item: UUID) -> ClaimedConsultation:
    with queue.store.transaction() as session:
        [question] = consultations.claim(session, [question_of(queue, item).id], lease_seconds=60)
    return question


def shown_to(question: ClaimedConsultation) -> list[str]:
    return [said.expert for said in question.request.ask.context]


@pytest.mark.parametrize("is_being_asked", [False, True])
def test_what_was_taken_back_is_shown_to_nobody_any_more(queue: Queue, is_being_asked: bool) -> None:
    ana, _ = queue.person("ana")
    item = correct_before_the_readers(queue, ana, ConsultResult(score=0.0))
    late = ask_reader(queue, item) if is_being_asked else None
    take_back(queue, item, ana)
    if late is not None:
        assert sorted(shown_to(late)) == ["first", "human", "second"]
        with queue.store.transaction() as session:
            settling.settle(session, late, ConsultResult(feedback=Feedback(text="say better")))
            [attempt] = session.scalars(select(AttemptRow).where(AttemptRow.consultation_id == late.consultation_id))
        assert (attempt.outcome, attempt.reason) == ("failed", undo.REASON)
    assert question_of(queue, item).status == "pending", "an expert that had the words says nothing that counts"
    again = ask_reader(queue, item)
    assert sorted(shown_to(again)) == ["first", "second"]
    with queue.store.transaction() as session:
        settling.settle(session, again, ConsultResult(score=1.0))
        lesson = session.scalars(select(LessonRow).where(LessonRow.rollout_id == again.rollout_id)).one()
        said = session.scalars(select(LessonAnswerRow.answer_id).where(LessonAnswerRow.lesson_id == lesson.id)).all()
    assert len(said) == 3


def test_a_question_that_was_only_about_what_was_taken_back_ends(queue: Queue) -> None:
    ana, _ = queue.person("ana")
    item = correct_before_the_readers(queue, ana, ConsultAbstain())
    take_back(queue, item, ana)
    ended = question_of(queue, item)
    assert (ended.status, ended.reason, ended.ask["context"]) == ("abstained", undo.REASON, [])
    with queue.store.transaction() as session:
        rollout = rollouts.get(session, ended.rollout_id)
        assert rollout.status == "ready", "it waits for the person alone"
    submit(queue, item, ana)
    with queue.store.transaction() as session:
        assert session.scalars(select(LessonRow.late)).all() == [True]


def test_what_an_expert_made_of_what_was_taken_back_trains_nothing(queue: Queue) -> None:
    ana, _ = queue.person("ana")
    item = correct_before_the_readers(queue, ana, ConsultResult(score=0.0))
    with queue.store.transaction() as session:
        said = ConsultResult(score=1.0, feedback=Feedback(text="say better"))
        settling.settle(session, ask_reader(queue, item), said)
    take_back(queue, item, ana)
    question = question_of(queue, item)
    with queue.store.transaction() as session:
        answer = session.scalars(select(AnswerRow).where(AnswerRow.consultation_id == question.id)).one()
        lesson = session.scalars(select(LessonRow)).one()
    assert (answer.status, answer.feedback) == ("withdrawn", None)
    assert [said["expert"] for said in question.ask["context"]] == ["first", "second"]  # type: ignore[union-attr, call-overload, index]
    assert lesson.status == "ready", "what the others said still trains"


def test_an_expert_that_said_it_would_answer_later_to_what_was_taken_back_is_not_heard(queue: Queue) -> None:
    ana, _ = queue.person("ana")
    item = correct_before_the_readers(queue, ana, ConsultResult(score=0.0))
    with queue.store.transaction() as session:
        settling.settle(session, ask_reader(queue, item), ConsultLater())
    take_back(queue, item, ana)
    with pytest.raises(NotWaiting), queue.store.transaction() as session:
        settling.settle_late(session, question_of(queue, item).id, ConsultResult(score=1.0))


def test_what_an_update_was_trained_on_by_way_of_an_expert_is_not_taken_back(queue: Queue) -> None:
    ana, _ = queue.person("ana")
    item = correct_before_the_readers(queue, ana, ConsultResult(score=0.0))
    with queue.store.transaction() as session:
        settling.settle(session, ask_reader(queue, item), ConsultLater())
    with queue.store.transaction() as session:
        settling.settle_late(session, question_of(queue, item).id, ConsultResult(score=1.0))
        made = session.scalars(select(LessonRow).where(LessonRow.late)).one()
        made.status, made.owner, made.lease_until = "claimed", new_id(), func.now()
    with pytest.raises(TooLateToUndo, match="a trainer has it"):
        take_back(queue, item, ana)


def start_update(queue: Queue, max_late: int = 8) -> UUID:
    """An update that has claimed every late lesson it may."""
    with queue.store.transaction() as session:
        owner = new_id()
        held = lessons.claim(
            session, queue.world.lineage_id, owner, num_rollouts=0, max_late=max_late, lease_seconds=60
        )
        return rows.start_update(session, queue.world.lineage_id, owner, [lesson.id for lesson in held]).id


def test_a_page_of_history_takes_as_many_statements_however_long_it_is(
    queue: Queue, num_statements: Callable[[Callable[[], object]], int]
) -> None:
    ana, _ = queue.person("ana")

    def read() -> None:
        with queue.store.transaction() as session:
            found = desk.history(session, queue.world.lineage_id, ana, cursor=None, limit=9).items
        assert all(one.undo_until is not None for one in found)

    needed = []
    for n in range(3):
        item = put(queue, f"t{n}", asked_for=True)
        assert claim(queue, ana) == item
        submit(queue, item, ana)
        needed.append(num_statements(read))
    assert needed == [needed[0]] * 3
    assert needed[0] < 12


def test_what_a_trainer_has_claimed_is_not_taken_back_and_it_says_which_update_has_it(queue: Queue) -> None:
    item = put(queue, "a")
    ana, _ = queue.person("ana")
    claim(queue, ana)
    submit(queue, item, ana)
    step = start_update(queue)
    with pytest.raises(TooLateToUndo, match="update 1 is being trained on it"):
        take_back(queue, item, ana)
    with queue.store.transaction() as session:
        assert desk.outcome(session, corrections.get(session, item)).undo_until is None
        updates.abandon(session, step, "the trainer died")
    take_back(queue, item, ana)
    assert queue.read(item).status == "claimed"


def test_what_an_update_was_trained_on_is_not_taken_back(queue: Queue) -> None:
    item = put(queue, "a")
    ana, _ = queue.person("ana")
    claim(queue, ana)
    submit(queue, item, ana)
    step = start_update(queue)
    with queue.store.transaction() as session:
        answer = session.scalars(select(AnswerRow).where(AnswerRow.solution == "better")).one()
        used = session.scalars(select(UpdateLessonRow)).one()
        term = TermRecord(kind=TermKind.CONDITIONED, answers=[answer.id], weight=1.0, share=1.0)
        owner = updates.get(session, queue.world.lineage_id, 1).owner
        updates.apply(
            session,
            step,
            owner,
            checkpoint_sha256="c",
            metrics={},
            contributions=[Contribution(lesson_id=used.lesson_id, terms=(term,))],
        )
    with pytest.raises(TooLateToUndo, match="update 1 was trained on it"):
        take_back(queue, item, ana)


def test_after_its_window_a_correction_stands(queue: Queue) -> None:
    item = put(queue, "a")
    ana, _ = queue.person("ana")
    claim(queue, ana)
    submit(queue, item, ana)
    with queue.store.transaction() as session:
        session.execute(update(CorrectionRow).values(decided_at=func.now() - undo.WINDOW))
    with pytest.raises(TooLateToUndo, match="10 minutes"):
        take_back(queue, item, ana)


def test_nobody_takes_back_what_someone_else_decided(queue: Queue) -> None:
    item = put(queue, "a")
    ana, ben = queue.person("ana")[0], queue.person("ben")[0]
    claim(queue, ana)
    submit(queue, item, ana)
    with pytest.raises(NotYours):
        take_back(queue, item, ben)


def test_the_trainer_leaves_alone_what_is_held_and_takes_it_afterwards(queue: Queue) -> None:
    item = put(queue, "a")
    ana, _ = queue.person("ana")
    claim(queue, ana)
    submit(queue, item, ana, CorrectionSubmit(verdict="corrected", text="better", hold_seconds=60))
    with queue.store.transaction() as session:
        task_id = rollouts.get(session, queue.read(item).rollout_id).task_id
        assert lessons.count_ready_late(session, queue.world.lineage_id) == 0
        assert find_fixed(session, queue.world.lineage_id, [task_id]) == {task_id: []}
        session.execute(update(CorrectionRow).values(held_until=func.now() - timedelta(seconds=1)))
    with queue.store.transaction() as session:
        assert lessons.count_ready_late(session, queue.world.lineage_id) == 1
    start_update(queue)
    with queue.store.transaction() as session:
        assert session.scalars(select(LessonRow.status).where(LessonRow.late)).one() == "claimed"


def test_of_a_correction_and_an_undo_at_once_the_trainer_and_the_person_never_both_win(queue: Queue) -> None:
    ana, _ = queue.person("ana")
    for n in range(5):
        item = put(queue, f"t{n}", asked_for=True)
        assert claim(queue, ana) == item
        submit(queue, item, ana)
        undone: list[bool] = []

        def try_undo(item: UUID = item, undone: list[bool] = undone) -> None:
            try:
                take_back(queue, item, ana)
                undone.append(True)
            except TooLateToUndo:
                undone.append(False)

        step: list[UUID] = []
        at_once([try_undo, lambda step=step: step.append(start_update(queue))])
        with queue.store.transaction() as session:
            question = queue.read(item).consultation_id
            status = session.scalars(
                select(LessonRow.status)
                .join(ConsultationRow, ConsultationRow.rollout_id == LessonRow.rollout_id)
                .where(ConsultationRow.id == question, LessonRow.late)
                .order_by(LessonRow.id.desc())
                .limit(1)
            ).one()
            updates.abandon(session, step[0], "over")
        assert status == ("withdrawn" if undone == [True] else "claimed")
        if not undone[0]:
            take_back(queue, item, ana)
        with queue.store.transaction() as session:
            corrections.skip(session, item, ana, CorrectionSkip(reason="done"))
