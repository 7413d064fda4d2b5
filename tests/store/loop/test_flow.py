"""From a draw to a lesson: who is asked what, how a question ends, and what that makes of the rollout."""

import time
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from services.contracts.answers import AnswerKind, Feedback, TopKDistribution
from services.contracts.consultations import InvalidAnswer
from services.contracts.experts import ConsultAbstain, ConsultLater, ConsultResult
from services.contracts.rollouts import Purpose, Rollout, RolloutCreate, Sampling
from services.contracts.sources import ContextSource
from services.contracts.tasks import Split
from services.runtime.errors import IllegalStatusChange, InvalidInput
from services.store.core.transaction import Store
from services.store.loop import answers, consultations, groups, rollouts, settling, tasks
from services.store.loop.ingest import NotItsGroup
from services.store.loop.lineages import LineageModelDiffers, ensure
from services.store.loop.settling import NotWaiting
from services.store.loop.tasks import TaskKeyTaken
from services.store.tables.ledger import LessonAnswerRow, LessonRow
from services.store.tables.loop import AnswerRow, AttemptRow, ConsultationRow, ExpertRow, GroupRow, RolloutRow
from tests.store.conftest import TOKENIZER, World

pytestmark = pytest.mark.integration


def ask_all(store: Store) -> list[consultations.ClaimedConsultation]:
    with store.transaction() as session:
        ids = session.scalars(select(ConsultationRow.id)).all()
        return consultations.claim(session, ids, lease_seconds=60)


def settle(store: Store, question: consultations.ClaimedConsultation, outcome: settling.Outcome) -> None:
    with store.transaction() as session:
        settling.settle(session, question, outcome)


def status_of(store: Store, rollout: RolloutRow) -> str:
    with store.transaction() as session:
        return rollouts.get(session, rollout.id).status


def lessons_of(store: Store, rollout: RolloutRow) -> list[LessonRow]:
    with store.transaction() as session:
        query = select(LessonRow).where(LessonRow.rollout_id == rollout.id).order_by(LessonRow.ordinal)
        return list(session.scalars(query))


def test_a_rollout_becomes_ready_with_one_lesson_when_its_last_question_is_settled(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, "first")
        world.expert(session, "second", kinds=(AnswerKind.FEEDBACK,), verifier=False)
        [rollout] = world.drawn(session, world.task(session), size=1)
    one, two = ask_all(store)
    settle(store, one, ConsultResult(score=1.0))
    assert status_of(store, rollout) == "open"
    settle(store, two, ConsultResult(feedback=Feedback(text="good")))
    assert status_of(store, rollout) == "ready"
    [lesson] = lessons_of(store, rollout)
    assert (lesson.status, lesson.late) == ("ready", False)
    with store.transaction() as session:
        assert rollouts.get(session, rollout.id).score == 1.0
        assert session.scalar(select(func.count()).select_from(LessonAnswerRow)) == 2


def test_a_late_worker_changes_nothing(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
        world.drawn(session, world.task(session), size=1)
    [slow] = ask_all(store)
    with store.transaction() as session:
        session.execute(update(ConsultationRow).values(lease_until=func.now() - timedelta(seconds=1)))
    with store.transaction() as session:
        assert settling.sweep(session, resend_seconds=30, limit=10) == [slow.consultation_id]
    [fast] = ask_all(store)
    settle(store, fast, ConsultResult(score=0.0))
    settle(store, slow, ConsultResult(score=1.0))
    with store.transaction() as session:
        assert session.scalars(select(AnswerRow.score)).all() == [0.0]
        assert [a.outcome for a in session.scalars(select(AttemptRow).order_by(AttemptRow.number))] == [None, "ok"]


def test_a_question_claimed_twice_is_given_once(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
        world.drawn(session, world.task(session), size=3)
    assert len(ask_all(store)) == 3
    assert ask_all(store) == []


def test_an_expert_that_is_down_is_asked_again_and_never_scores_zero(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
        [rollout] = world.drawn(session, world.task(session), size=1)
    for attempt in range(3):
        with store.transaction() as session:
            session.execute(update(ConsultationRow).values(not_before=func.now() - timedelta(seconds=1)))
        [question] = ask_all(store)
        assert question.attempt == attempt + 1
        with store.transaction() as session:
            settling.release(session, question, "refused", retry_after=None, max_attempts=3, quarantine_after=100)
    with store.transaction() as session:
        [row] = session.scalars(select(ConsultationRow)).all()
        assert (row.status, row.reason) == ("dead", "refused")
        found = rollouts.get(session, rollout.id)
        assert (found.status, found.reason, found.score) == ("set_aside", "no expert answered", None)
    assert lessons_of(store, rollout) == []


def test_a_busy_expert_uses_up_no_attempts(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
        world.drawn(session, world.task(session), size=1)
    for _ in range(4):
        [question] = ask_all(store)
        with store.transaction() as session:
            settling.release(session, question, "busy", retry_after=0, max_attempts=2, quarantine_after=2)
        time.sleep(0.01)
    with store.transaction() as session:
        assert session.scalars(select(ConsultationRow.status)).all() == ["pending"]
        assert session.scalars(select(ExpertRow.consecutive_failures)).all() == [0]


def test_failures_in_a_row_quarantine_an_expert_and_its_questions_wait(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
        world.drawn(session, world.task(session), size=2)
    for question in ask_all(store):
        with store.transaction() as session:
            settling.release(session, question, "down", retry_after=None, max_attempts=9, quarantine_after=2)
    with store.transaction() as session:
        [expert] = session.scalars(select(ExpertRow)).all()
        assert expert.status == "quarantined"
        assert "2 failures in a row" in (expert.reason or "")
        session.execute(update(ConsultationRow).values(not_before=func.now() - timedelta(seconds=1)))
    assert ask_all(store) == []


def test_the_second_stage_is_asked_given_the_first_stages_answers(store: Store, world: World) -> None:
    with store.transaction() as session:
        solves = ContextSource.SOLUTION
        world.expert(session, "reference", kinds=(AnswerKind.SOLUTION,), verifier=False, teaches=solves)
        world.expert(session, "teacher", kinds=(AnswerKind.TOPK,), verifier=False, needs_answers=True)
        [rollout] = world.drawn(session, world.task(session), size=1)
    [first] = ask_all(store)
    assert first.expert_name == "reference"
    settle(store, first, ConsultResult(solution="42"))
    assert status_of(store, rollout) == "open"
    [second] = ask_all(store)
    assert [(c.expert, c.solution) for c in second.request.ask.context] == [("reference", "42")]
    row = [[0.0]] * 3
    distribution = TopKDistribution(tokenizer_hash=TOKENIZER, token_ids=[[5]] * 3, logprobs=row, tail_mass=[0.0] * 3)
    settle(store, second, ConsultResult(distribution=distribution))
    assert status_of(store, rollout) == "ready"
    with store.transaction() as session:
        [answer] = session.scalars(select(AnswerRow).where(AnswerRow.distribution_kind == "topk")).all()
        assert answers.distribution(session, answer.id) == distribution


def test_the_second_stage_is_shown_verdicts_and_of_the_rest_what_teaches(store: Store, world: World) -> None:
    with store.transaction() as session:
        kinds = (AnswerKind.SCORE, AnswerKind.FEEDBACK)
        world.expert(session, "judge", kinds=kinds)
        world.expert(session, "taught", kinds=kinds, verifier=False, teaches=ContextSource.FEEDBACK)
        world.expert(session, "critic", kinds=(AnswerKind.FEEDBACK,), verifier=False)
        world.expert(session, "teacher", kinds=(AnswerKind.TOPK,), verifier=False, needs_answers=True)
        world.drawn(session, world.task(session), size=1)
    for question in ask_all(store):
        told = ConsultResult(score=None if question.expert_name == "critic" else 0.0, feedback=Feedback(text="no"))
        settle(store, question, told)
    [second] = ask_all(store)
    shown = {said.expert: (said.score, said.feedback and said.feedback.text) for said in second.request.ask.context}
    assert shown == {"judge": (0.0, None), "taught": (0.0, "no")}


def test_an_answer_that_does_not_fit_its_rollout_is_invalid_with_the_reason(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
        [rollout] = world.drawn(session, world.task(session), size=1)
    [question] = ask_all(store)
    short = TopKDistribution(tokenizer_hash=TOKENIZER, token_ids=[[5]], logprobs=[[0.0]], tail_mass=[0.0])
    settle(store, question, ConsultResult(distribution=short))
    with store.transaction() as session:
        [row] = session.scalars(select(ConsultationRow)).all()
        assert (row.status, row.reason) == ("invalid", "the distribution has 1 rows for 3 tokens")
    assert status_of(store, rollout) == "set_aside"


def test_a_token_outside_the_vocabulary_makes_an_answer_invalid(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
        world.drawn(session, world.task(session), size=1)
    [question] = ask_all(store)
    far = TopKDistribution(tokenizer_hash=TOKENIZER, token_ids=[[1000]] * 3, logprobs=[[0.0]] * 3, tail_mass=[0.0] * 3)
    settle(store, question, ConsultResult(distribution=far))
    with store.transaction() as session:
        assert "outside the vocabulary of 1000" in (session.scalars(select(ConsultationRow.reason)).one() or "")


@pytest.mark.parametrize(
    ("outcome", "status"),
    [(ConsultAbstain(reason="not mine"), "abstained"), (InvalidAnswer(reason="NaN"), "invalid")],
)
def test_only_a_result_trains(store: Store, world: World, outcome: settling.Outcome, status: str) -> None:
    with store.transaction() as session:
        world.expert(session)
        [rollout] = world.drawn(session, world.task(session), size=1)
    [question] = ask_all(store)
    settle(store, question, outcome)
    with store.transaction() as session:
        assert session.scalars(select(ConsultationRow.status)).all() == [status]
    assert lessons_of(store, rollout) == []


def test_a_late_answer_opens_a_second_lesson_with_only_its_own_terms(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, "judge")
        world.expert(session, "person", kinds=(AnswerKind.SOLUTION,), verifier=False)
        [rollout] = world.drawn(session, world.task(session), size=1)
    judge, person = ask_all(store)
    settle(store, person, ConsultLater())
    assert status_of(store, rollout) == "open"
    settle(store, judge, ConsultResult(score=0.0))
    assert status_of(store, rollout) == "ready"
    with store.transaction() as session:
        settling.settle_late(session, person.consultation_id, ConsultResult(solution="better"))
    first, second = lessons_of(store, rollout)
    assert (first.late, second.late) == (False, True)
    with store.transaction() as session:
        of_second = session.scalars(
            select(AnswerRow.solution)
            .join(LessonAnswerRow, LessonAnswerRow.answer_id == AnswerRow.id)
            .where(LessonAnswerRow.lesson_id == second.id)
        ).all()
    assert of_second == ["better"]
    with pytest.raises(NotWaiting), store.transaction() as session:
        settling.settle_late(session, person.consultation_id, ConsultResult(solution="again"))


def test_a_waiting_answer_alone_makes_the_rollout_ready_and_trains_when_it_comes(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, "person", kinds=(AnswerKind.SOLUTION,), verifier=False)
        [rollout] = world.drawn(session, world.task(session), size=1)
    [person] = ask_all(store)
    settle(store, person, ConsultLater())
    assert status_of(store, rollout) == "ready"
    assert lessons_of(store, rollout) == []
    with store.transaction() as session:
        settling.settle_late(session, person.consultation_id, ConsultResult(solution="better"))
    assert [lesson.late for lesson in lessons_of(store, rollout)] == [True]


def test_a_deadline_that_passed_ends_the_question_and_moves_the_rollout_on(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
        [rollout] = world.drawn(session, world.task(session), size=1)
        session.execute(update(ConsultationRow).values(deadline=func.now() - timedelta(seconds=1)))
    with store.transaction() as session:
        assert settling.sweep(session, resend_seconds=30, limit=10) == []
    assert status_of(store, rollout) == "set_aside"


def test_a_message_that_was_lost_is_sent_again(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
        world.drawn(session, world.task(session), size=1)
    with store.transaction() as session:
        assert settling.sweep(session, resend_seconds=30, limit=10) == []
        session.execute(update(ConsultationRow).values(sent_at=func.now() - timedelta(seconds=31)))
    with store.transaction() as session:
        assert len(settling.sweep(session, resend_seconds=30, limit=10)) == 1


def test_a_dead_question_may_be_asked_once_more_and_others_may_not(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
        world.drawn(session, world.task(session), size=1)
        [row] = session.scalars(select(ConsultationRow)).all()
        settling.kill(session, row, "the expert retired")
    with store.transaction() as session:
        assert consultations.requeue(session, row.id).status == "pending"
    with pytest.raises(IllegalStatusChange), store.transaction() as session:
        consultations.requeue(session, row.id)


def test_metadata_that_was_not_granted_never_leaves_the_house(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, "blind")
        world.expert(session, "sees", metadata_keys=("answer",), granted=("answer",))
        world.expert(session, "refused", metadata_keys=("answer",))
        world.drawn(session, world.task(session), size=1)
    seen = {q.expert_name: q.request.task.metadata for q in ask_all(store)}
    assert seen == {"blind": {}, "sees": {"answer": "1"}}


def test_evaluations_are_judged_by_verifiers_only_and_make_no_lesson(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, "verifier")
        world.expert(session, "talker", kinds=(AnswerKind.FEEDBACK,), verifier=False)
        heldout = world.task(session, "h", Split.HELDOUT)
        [rollout] = world.drawn(session, heldout, size=1, purpose=Purpose.EVALUATION)
    [question] = ask_all(store)
    assert question.expert_name == "verifier"
    settle(store, question, ConsultResult(score=1.0, solution="the secret"))
    assert status_of(store, rollout) == "ready"
    assert lessons_of(store, rollout) == []
    with store.transaction() as session:
        assert session.scalars(select(AnswerRow.solution)).all() == [None]


def test_what_teachers_are_shown_is_asked_for_about_train_tasks_alone(store: Store, world: World) -> None:
    kinds = (AnswerKind.SCORE, AnswerKind.SOLUTION, AnswerKind.PRECEDENTS)
    with store.transaction() as session:
        world.expert(session, "verifier", kinds=kinds)
        world.drawn(session, world.task(session, "t"), size=1)
        world.drawn(session, world.task(session, "h", Split.HELDOUT), size=1, purpose=Purpose.EVALUATION)
    assert [list(question.request.ask.kinds) for question in ask_all(store)] == [list(kinds), [AnswerKind.SCORE]]


def test_an_expert_on_probation_is_asked_but_its_score_is_no_verdict(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, status="probation")
        [rollout] = world.drawn(session, world.task(session), size=1)
    [question] = ask_all(store)
    settle(store, question, ConsultResult(score=1.0))
    with store.transaction() as session:
        assert rollouts.get(session, rollout.id).score is None


def test_rollouts_per_group_limits_how_much_an_expert_is_asked(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, rollouts_per_group=2)
        world.drawn(session, world.task(session), size=5)
    assert len(ask_all(store)) == 2


def test_draws_stop_while_the_backlog_is_full(store: Store, world: World) -> None:
    with store.transaction() as session:
        for i in range(9):
            world.task(session, f"t{i}")

    def plan() -> int:
        with store.transaction() as session:
            room = groups.find_room(session, world.lineage_id, max_backlog=10, size=4)
            chosen = tasks.least_drawn(session, world.lineage_id, 1, 4, room, seed=0)
            return len(groups.plan(session, chosen, size=4, sampling=Sampling(), seed=0))

    assert plan() == 2
    assert plan() == 0
    with store.transaction() as session:
        session.execute(update(GroupRow).values(status="asked"))
    assert plan() == 0
    with store.transaction() as session:
        session.execute(update(GroupRow).values(status="dead"))
    assert plan() == 2


def test_domains_take_turns_and_a_task_is_drawn_no_more_often_than_allowed(store: Store, world: World) -> None:
    with store.transaction() as session:
        for i in range(3):
            world.task(session, f"m{i}", domain="math")
        world.task(session, "c", domain="code/python")
        world.task(session, "h", Split.HELDOUT)
        drawn = tasks.least_drawn(session, world.lineage_id, max_groups_per_task=1, size=8, limit=10, seed=1)
    assert {task.domain for task in drawn[:2]} == {"math", "code/python"}
    assert sorted(task.key for task in drawn) == ["c", "m0", "m1", "m2"]


def test_the_domain_that_has_waited_longest_is_drawn_next_however_many_tasks_it_has(store: Store, world: World) -> None:
    with store.transaction() as session:
        for domain, num in (("a", 9), ("b", 2), ("c", 5)):
            for number in range(num):
                world.task(session, f"{domain}{number}", domain=domain)
        drawn = []
        for _ in range(7):
            [task] = tasks.least_drawn(session, world.lineage_id, max_groups_per_task=1, size=8, limit=1, seed=1)
            groups.add(session, task, purpose=Purpose.TRAIN, size=8, sampling=Sampling())
            drawn.append(task.domain)
    assert sorted(drawn[:3]) == ["a", "b", "c"]
    assert drawn[3:6] == drawn[:3]
    assert drawn[6] == next(domain for domain in drawn if domain != "b")  # both of its tasks were drawn


def test_a_task_of_small_groups_is_drawn_until_they_have_as_many_rollouts_as_whole_ones(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        small, whole = world.task(session, "small"), world.task(session, "whole", domain="code/python")
        for task, size in ((small, 2), (small, 2), (small, 2), (whole, 8)):
            groups.add(session, task, purpose=Purpose.TRAIN, size=size, sampling=Sampling())

        def due(most: int) -> list[str]:
            found = tasks.least_drawn(session, world.lineage_id, most, size=8, limit=10, seed=1)
            return [task.key for task in found]

        assert due(most=1) == ["small"]
        assert due(most=2) == ["small", "whole"]
        groups.add(session, small, purpose=Purpose.TRAIN, size=2, sampling=Sampling())
        assert due(most=1) == []


def test_small_groups_of_a_domain_take_one_turn_together(store: Store, world: World) -> None:
    with store.transaction() as session:
        nearest = [
            world.task(session, key, domain=domain)
            for key, domain in (("a1", "a"), ("b1", "b"), ("a2", "a"), ("a3", "a"), ("a4", "a"), ("b2", "b"))
        ]
        names = {task.id: task.key for task in nearest}
        sizes = {task.id: size for task, size in zip(nearest, (2, 4, 4, 8, 2, 8), strict=True)}

        def turns(num: int) -> list[str]:
            return [names[task.id] for task in tasks.take_turns(nearest, sizes, size=8, num_turns=num)]

    assert turns(1) == ["a1", "a2", "a4"]  # 2 + 4 + 2; a whole group does not fit beside them
    assert turns(2) == ["a1", "a2", "a4", "b1"]
    assert turns(9) == ["a1", "a2", "a4", "b1", "a3", "b2"]


def test_at_most_so_many_draws_are_under_way(store: Store, world: World) -> None:
    with store.transaction() as session:
        for i in range(5):
            groups.add(session, world.task(session, f"t{i}"), purpose=Purpose.TRAIN, size=1, sampling=Sampling())

    def due() -> int:
        with store.transaction() as session:
            return len(groups.take_due(session, max_in_flight=2, resend_seconds=30))

    assert due() == 2
    assert due() == 0
    with store.transaction() as session:
        session.execute(update(GroupRow).values(sent_at=func.now() - timedelta(seconds=31)))
    assert due() == 2


def test_a_draw_of_a_dead_worker_is_given_to_another_and_only_one_counts(store: Store, world: World) -> None:
    with store.transaction() as session:
        group = groups.add(session, world.task(session), purpose=Purpose.TRAIN, size=1, sampling=Sampling())
    with store.transaction() as session:
        [dead] = groups.claim(session, [group.id], lease_seconds=-1)
    with store.transaction() as session:
        assert groups.take_due(session, max_in_flight=5, resend_seconds=30) == [group.id]
    with store.transaction() as session:
        [alive] = groups.claim(session, [group.id], lease_seconds=60)
    with store.transaction() as session:
        assert groups.finish(session, dead, "base") is None
        assert groups.finish(session, alive, "base") is not None


def test_external_rollouts_of_one_group_are_siblings_and_of_other_tasks_are_refused(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
        task, other = world.task(session, "a"), world.task(session, "b")
        first = world.external(session, task)
        sibling = RolloutCreate(task_id=task.id, text="x", group_id=first.group_id)
        second = world.arrive(session, sibling)
        assert isinstance(second, Rollout)
        assert (second.group_id, second.index_in_group) == (first.group_id, 1)
    wrong = RolloutCreate(task_id=other.id, text="x", group_id=first.group_id)
    with store.transaction() as session:
        assert isinstance(world.arrive(session, wrong), NotItsGroup)


def test_a_heldout_rollout_cannot_be_drawn_for_training(store: Store, world: World) -> None:
    with pytest.raises(InvalidInput, match="only `train` tasks train"), store.transaction() as session:
        world.external(session, world.task(session, "h", Split.HELDOUT))


def test_the_same_key_with_the_same_content_is_one_task_and_with_other_content_refused(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        first = world.task(session, "k")
        assert world.task(session, "k").id == first.id
    with pytest.raises(TaskKeyTaken), store.transaction() as session:
        world.task(session, "k", domain="code/python")


def test_a_lineage_refuses_another_model(store: Store, world: World) -> None:
    with pytest.raises(LineageModelDiffers), store.transaction() as session:
        ensure(session, "main", "other", "c" * 64, TOKENIZER, 1000, former_sha256="d" * 64)


def test_a_lineage_that_knows_its_model_by_the_former_hash_gets_the_present_one(store: Store, world: World) -> None:
    with store.transaction() as session:
        former = world.lineage(session).base_sha256
        found = ensure(session, "main", "other", "c" * 64, TOKENIZER, 1000, former_sha256=former)
        assert (found.id, found.base_sha256) == (world.lineage_id, "c" * 64)
