"""What the arms of a measurement are shown, and how often each passed, by rows written by hand."""

import math
from uuid import UUID

import pytest
from sqlalchemy import func
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerKind, Feedback, SamplesDistribution, TopKDistribution
from services.contracts.experts import ConsultResult
from services.contracts.ids import new_id
from services.contracts.measurements import MeasurementStatus
from services.contracts.rollouts import Purpose, Sampling
from services.contracts.sources import Arm, ContextSource, ShownContext
from services.contracts.tasks import Message, Precedent, Split, TaskCreate
from services.contracts.templates import Template
from services.store.core.transaction import Store
from services.store.loop import consultations, groups, settling, tasks
from services.store.tables.loop import ConsultationRow, ExpertRow, RolloutRow, TaskRow
from services.store.tables.teaching import MeasuredTaskRow, MeasurementRow
from services.store.teaching import arms, mixing
from services.store.teaching.arms import Shown, Tried
from tests.store.conftest import TOKENIZER, World


def shown(words: str) -> Shown:
    return Shown((), solution=words)


def tasks_of(session: Session, world: World, **families: str) -> dict[UUID, TaskRow]:
    made = {}
    for key, family in families.items():
        wanted = TaskCreate(key=key, domain="math", family=family, messages=[Message(role="user", content=f"{key}?")])
        row = tasks.add(session, world.lineage_id, wanted)[0]
        made[row.id] = row
    return made


def test_the_control_is_another_tasks_and_of_another_family_if_there_is_one(store: Store, world: World) -> None:
    with store.transaction() as session:
        made = tasks_of(session, world, a="f", b="f", c="g")
        a, b, c = made
        found = arms.pair_controls(
            ContextSource.OWN_SUCCESS, made, {a: shown("of a"), b: shown("of b"), c: shown("of c")}
        )

    assert {task_id: one.solution for task_id, one in found.items()} == {a: "of c", b: "of c", c: "of a"}


def test_a_task_whose_words_no_other_task_differs_from_has_no_control(store: Store, world: World) -> None:
    with store.transaction() as session:
        made = tasks_of(session, world, a="f", b="g")
        a, b = made

        assert arms.pair_controls(ContextSource.FEEDBACK, made, {a: shown("same"), b: shown("same")}) == {}
        assert arms.pair_controls(ContextSource.FEEDBACK, made, {a: shown("alone")}) == {}


def test_the_control_of_a_precedent_is_its_answer_as_if_it_answered_this_question(store: Store, world: World) -> None:
    with store.transaction() as session:
        made = tasks_of(session, world, a="f")
        [a] = made
        told = Precedent(messages=[Message(role="user", content="other?")], answer="its answer")
        found = arms.pair_controls(ContextSource.PRECEDENTS, made, {a: Shown((), precedents=(told,))})
        measurement = measure(session, world, world.expert(session), ContextSource.PRECEDENTS)
        teacher = arms.build_context(measurement, made[a], Shown((), precedents=(told,)), Arm.TEACHER)
        control = arms.build_context(measurement, made[a], found[a], Arm.CONTROL)

    assert [message.content for message in teacher.messages] == ["other?", "its answer", "a?"]
    assert [message.content for message in control.messages] == ["a?", "its answer", "a?"]


def measure(
    session: Session, world: World, expert: ExpertRow, source: ContextSource, template: Template = Template.TURNS
) -> MeasurementRow:
    return world.measured(session, expert.id, MeasurementStatus.MEASURING, source=source, template=template)


def draw_student(
    session: Session, world: World, task: TaskRow, measured: MeasurementRow, scores: list[float]
) -> list[RolloutRow]:
    """The student's answers to a task of this measurement, with these scores."""
    group = groups.add(session, task, purpose=Purpose.PROBE, size=len(scores), sampling=Sampling())
    session.add(MeasuredTaskRow(measurement_id=measured.id, task_id=task.id, student_group_id=group.id))
    session.flush()
    [draw] = groups.claim(session, [group.id], lease_seconds=60)
    finished = groups.finish(session, draw, "base")
    assert finished is not None
    rows = world.store_drawn(session, finished)
    for row, score in zip(rows, scores, strict=True):
        row.score = score
    session.flush()
    return rows


def answer(session: Session, rollout: RolloutRow, expert: ExpertRow, said: ConsultResult) -> bool:
    """Whether it was asked about this rollout; then this is what it answered."""
    asked = session.query(ConsultationRow).filter_by(rollout_id=rollout.id, expert_id=expert.id).one_or_none()
    if asked is None:
        return False
    [claimed] = consultations.claim(session, [asked.id], lease_seconds=60)
    settling.settle(session, claimed, said)
    return True


def test_experts_are_asked_about_half_of_the_students_answers_and_feedback_is_that_on_a_failure_among_them(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        world.expert(session)
        tutor = world.expert(session, "tutor", kinds=(AnswerKind.FEEDBACK,), verifier=False)
        other = world.expert(session, "other", kinds=(AnswerKind.FEEDBACK,), verifier=False)
        measured = measure(session, world, tutor, ContextSource.FEEDBACK, Template.REPROMPT)
        rows = draw_student(session, world, world.task(session), measured, [1.0, 0.0, 0.0, 0.0])
        told = [
            answer(session, row, tutor, ConsultResult(feedback=Feedback(text=f"about {place}")))
            for place, row in enumerate(rows)
        ]
        asked_other = session.query(ConsultationRow).filter_by(expert_id=other.id).count()
        for row, score in zip(rows, [1.0, 0.0, 0.0, 0.0], strict=True):
            row.score = score

        found = arms.find_shown(session, measured, rows, ())

    assert told == [True, False, True, False]
    assert asked_other == 0
    assert found is not None
    assert found.feedback == "about 2"


def test_without_a_failure_in_that_half_there_is_no_feedback_to_show(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
        tutor = world.expert(session, "tutor", kinds=(AnswerKind.FEEDBACK,), verifier=False)
        measured = measure(session, world, tutor, ContextSource.FEEDBACK, Template.REPROMPT)
        rows = draw_student(session, world, world.task(session), measured, [1.0, 0.0])
        answer(session, rows[0], tutor, ConsultResult(feedback=Feedback(text="fine")))
        rows[0].score = 1.0

        assert arms.find_shown(session, measured, rows, ()) is None


def test_of_the_precedents_an_expert_returns_those_of_held_out_tasks_and_of_the_task_itself_are_not_shown(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        world.expert(session)
        teller = world.expert(session, "teller", kinds=(AnswerKind.PRECEDENTS,), verifier=False)
        task = world.task(session, "own")
        world.task(session, "hidden", split=Split.HELDOUT)
        measured = measure(session, world, teller, ContextSource.PRECEDENTS)
        rows = draw_student(session, world, task, measured, [0.0, 0.0])
        told = [
            Precedent(messages=[Message(role="user", content=f"What is {key}?")], answer=f"of {key}")
            for key in ("own", "hidden", "free", "spare")
        ]
        answer(session, rows[0], teller, ConsultResult(precedents=told))

        found = [arms.find_shown(session, measured, rows, (), num_precedents=num) for num in range(3)]

    assert [one and [told.answer for told in one.precedents] for one in found] == [
        None,
        ["of free"],
        ["of free", "of spare"],
    ]


@pytest.mark.parametrize(("status", "shown"), [("active", None), ("probation", "answer 0")])
def test_a_verifier_on_probation_is_measured_by_what_it_certifies_whatever_those_say_that_count(
    store: Store, world: World, status: str, shown: str | None
) -> None:
    with store.transaction() as session:
        world.expert(session)
        newcomer = world.expert(session, "newcomer", status=status)
        measured = measure(session, world, newcomer, ContextSource.OWN_SUCCESS)
        rows = draw_student(session, world, world.task(session), measured, [0.0, 0.0, 0.0])
        for row, score in zip(rows, [1.0, 1.0, 0.5], strict=True):
            answer(session, row, newcomer, ConsultResult(score=score))
        for row in rows:
            row.score = 0.0  # as the others have it

        found = arms.find_shown(session, measured, rows, ())

    assert (found and found.solution) == shown


@pytest.mark.parametrize("source", [one for one in ContextSource if one is not ContextSource.CORRECTION])
def test_the_student_is_read_from_the_half_that_supplies_nothing(source: ContextSource) -> None:
    # two of eight passed, one of the four that are compared
    tried = Tried(is_over=True, num_judged=8, num_passed=2, num_compared=4, num_compared_passed=1)

    assert tried.rate(source, Arm.STUDENT) == 1 / 4
    assert tried.rate(ContextSource.CORRECTION, Arm.STUDENT) == 2 / 8
    assert tried.rate(source, Arm.TEACHER) == tried.rate(source, Arm.CONTROL) == 2 / 8
    assert Tried(is_over=True).rate(source, Arm.TEACHER) is None


def test_an_expert_that_solves_nothing_gains_nothing_by_answering_failures_only(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
        idle = world.expert(session, "idle", kinds=(AnswerKind.SOLUTION,), verifier=False)
        measured = measure(session, world, idle, ContextSource.SOLUTION)
        gaps, of_all = [], []
        # two answers that pass by the toss of a coin, in each of their four outcomes; the first one may supply
        for scores in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)):
            task = world.task(session, str(scores))
            rows = draw_student(session, world, task, measured, list(scores))
            for row, score in zip(rows, scores, strict=True):
                row.score = score
            if scores[0] == 0.0:
                answer(session, rows[0], idle, ConsultResult(solution="no idea"))
            session.flush()
            if arms.find_shown(session, measured, rows, ()) is not None:
                tried = arms.read_tried(session, [rows[0].group_id])[rows[0].group_id]
                student = tried.rate(ContextSource.SOLUTION, Arm.STUDENT)
                assert student is not None
                gaps.append(0.5 - student)
                of_all.append(0.5 - tried.num_passed / tried.num_judged)

    assert gaps == [0.5, -0.5]
    assert of_all == [0.5, 0.0]  # as if it taught by a quarter


def test_what_the_policy_drew_in_the_place_of_its_teacher_is_judged_nowhere(store: Store, world: World) -> None:
    with store.transaction() as session:
        context = ShownContext(source=ContextSource.CORRECTION, template=Template.TURNS, messages=[])
        task = world.task(session)
        world.expert(session)
        group = groups.add(
            session, task, purpose=Purpose.PROBE, size=2, sampling=Sampling(), context=context, num_shown=2
        )
        [draw] = groups.claim(session, [group.id], lease_seconds=60)
        finished = groups.finish(session, draw, "base", num_shown=0, reason="what it was to be shown was withdrawn")
        assert finished is not None
        for row in world.store_drawn(session, finished):
            row.score, row.status, row.settled_at = 1.0, "ready", func.now()
        session.flush()

        [tried] = arms.read_tried(session, [group.id]).values()

    assert (tried.is_over, tried.num_judged, tried.num_tokens) == (True, 0, 6)


def rollout(token_ids: list[int], logprobs: list[float], mask: list[bool] | None = None) -> RolloutRow:
    return RolloutRow(
        token_ids=token_ids, sampler_logprobs=logprobs, action_mask=mask or [True] * len(token_ids), id=new_id()
    )


def test_a_top_k_is_compared_with_the_policy_at_the_action_tokens() -> None:
    top = TopKDistribution(
        tokenizer_hash=TOKENIZER,
        token_ids=[[5, 6], [7, 8], [9, 1]],
        logprobs=[[-0.5, -1.5], [-0.1, -3.0], [-0.2, -2.0]],
        tail_mass=[0.17, 0.05, 0.05],
    )
    said = rollout([6, 8, 2], [-1.0, -1.0, -1.0], [True, False, True])

    # e^-1.5 of the first token against e^-1; the third is outside, where a mass of .05 is left against e^-1
    assert mixing.find_excess(said, top, ()) == pytest.approx([math.exp(-0.5) - 1, 0.05 * math.e - 1])


def test_samples_are_compared_where_they_were_drawn_by_ids_or_by_the_text_of_the_token() -> None:
    ids = SamplesDistribution.model_validate(
        {
            "tokenizer_hash": TOKENIZER,
            "prefixes": [1],
            "continuations": [[{"token_ids": [8, 3]}, {"token_ids": [9]}]],
        }
    )
    words = SamplesDistribution.model_validate(
        {"prefixes": [1, 2], "continuations": [[{"text": "be gone"}, {"text": "or"}], [{"text": ""}, {"text": "x"}]]}
    )
    said = rollout([5, 8, 9], [-1.0, math.log(0.5), math.log(0.25)])
    texts = [*["?"] * 8, "be", "<|end|>"]

    # one of two samples: a share of .5 against .5, and against .25; the policy's own two give 1 on average
    assert mixing.find_excess(said, ids, ()) == pytest.approx([0.0])
    assert mixing.find_excess(said, words, texts) == pytest.approx([0.0, 1.0])
    assert mixing.find_excess(said, words, ()) == []


def test_a_place_that_was_drawn_counts_one_over_its_probability_times() -> None:
    drawn = SamplesDistribution.model_validate(
        {
            "tokenizer_hash": TOKENIZER,
            "prefixes": [0, 2],
            "continuations": [[{"token_ids": [5]}], [{"token_ids": [7]}]],
            "probabilities": [0.25, 0.5],
        }
    )
    said = rollout([5, 8, 9], [math.log(0.5), -1.0, math.log(0.4)])

    # a hit at .5: 2 - 1, of a place chosen with .25; a miss: 0 - 1, of one chosen with .5
    assert mixing.find_excess(said, drawn, ()) == pytest.approx([1 / 0.25, -1 / 0.5])


def test_places_drawn_by_surprise_estimate_the_excess_over_all_places_without_bias() -> None:
    chances, tokens = [0.9, 0.2], [5, 8]
    said = rollout(tokens, [-0.1, -1.0])
    hits = [{"token_ids": [5]}, {"token_ids": [1]}]

    def excess(places: list[int], probabilities: list[float] | None) -> float:
        asked = SamplesDistribution.model_validate(
            {
                "tokenizer_hash": TOKENIZER,
                "prefixes": places,
                "continuations": [[hits[place]] for place in places],
                "probabilities": probabilities,
            }
        )
        return math.fsum(mixing.find_excess(said, asked, ()))

    # each place is in the set or not, by itself; the empty set has no excess
    mean = (
        chances[0] * (1 - chances[1]) * excess([0], [chances[0]])
        + (1 - chances[0]) * chances[1] * excess([1], [chances[1]])
        + chances[0] * chances[1] * excess([0, 1], chances)
    )

    assert mean == pytest.approx(excess([0, 1], None))
