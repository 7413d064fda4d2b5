"""What a trainer needs to know about claimed lessons: rollout, task, answers and verdict, free of the session."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import ColumnElement, case, or_, select
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerStatus, Distribution, Feedback
from services.contracts.corrections import CorrectionStatus
from services.contracts.rollouts import Sampling
from services.contracts.sources import ShownContext
from services.contracts.tasks import Message, Precedent
from services.contracts.updates import Speaker
from services.store.ledger import distributions, policies
from services.store.loop import answers, held_out, opinions, trust
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import LessonAnswerRow, LessonRow, PolicyVersionRow
from services.store.tables.loop import AnswerRow, DistributionRow, ExpertRow, GroupRow, RolloutRow, TaskRow


@dataclass(frozen=True)
class LessonAnswer:
    """An answer a lesson may use. weight: its expert's; 0 where it does not count, or something its expert was shown
    does not, or where it evaluates itself in a domain in which that is not known to tell right from wrong; whether it
    does is looked up only where it would matter: not for a score alone in a domain that has verifiers.

    from_reference, from_precedents: the expert was given the task's reference or precedents, so its solution or its
    precedents are the same for every rollout. precedents: without those that answer a held-out question. corrected: a
    person wrote the solution about this very rollout. speakers: who gave it, then everybody whose words they were
    shown.
    """

    id: UUID
    expert_id: UUID
    expert: str
    expert_version: str
    weight: float
    score: float | None
    feedback: Feedback | None
    solution: str | None
    distribution: Distribution | None
    from_reference: bool
    corrected: bool
    precedents: tuple[Precedent, ...] = ()
    from_precedents: bool = False
    speakers: tuple[Speaker, ...] = ()


@dataclass(frozen=True)
class LessonOpinion:
    """How likely a rollout is right where no verifier exists, and the calibrated expert's answer that says so."""

    chance: float
    answer: LessonAnswer


@dataclass(frozen=True)
class LessonFacts:
    """A claimed lesson with its rollout, task and answers, free of the session.

    text: of the policy's last turn, which begins at the token `answer_start`. policy_number: the place of the version
    that sampled the rollout among those that served (`policies.place`); None where it is unknown. score: the verdict as
    it is now (`answers.verdicts`). judges: the answers it rests on, also those that came after the lesson was opened.
    opinion: of a rollout without a verdict; it may choose which sibling is shown, and is no reward. group_size:
    rollouts of its group that the policy drew. shown: the teacher drew it, so it has none of these; `sampling` is that
    of its group: how the policy, which is read after the plain prompt, would have drawn it. shown_after: the answers
    behind what that teacher was shown.
    """

    lesson_id: UUID
    rollout_id: UUID
    group_id: UUID
    group_size: int
    index_in_group: int
    ordinal: int
    late: bool
    task_id: UUID
    domain: str
    messages: tuple[Message, ...]
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    sampler_logprobs: tuple[float, ...] | None
    action_mask: tuple[bool, ...]
    sampling: Sampling | None
    tokenized_at_ingest: bool
    finish_reason: str
    policy_number: int | None
    score: float | None
    answers: tuple[LessonAnswer, ...]
    judges: tuple[LessonAnswer, ...] = ()
    opinion: LessonOpinion | None = None
    answer_start: int = 0
    shown: bool = False
    shown_after: tuple[LessonAnswer, ...] = ()


def load(session: Session, lessons: Sequence[LessonRow]) -> list[LessonFacts]:
    """Everything about claimed lessons, in their order."""
    ids = [row.id for row in lessons]
    rows = session.execute(
        select(LessonRow.id, RolloutRow, TaskRow, GroupRow, _place())
        .join(RolloutRow, RolloutRow.id == LessonRow.rollout_id)
        .join(TaskRow, TaskRow.id == RolloutRow.task_id)
        .join(GroupRow, GroupRow.id == RolloutRow.group_id)
        .outerjoin(
            PolicyVersionRow,
            (PolicyVersionRow.name == RolloutRow.policy_version)
            & (PolicyVersionRow.lineage_id == RolloutRow.lineage_id),
        )
        .where(LessonRow.id.in_(ids))
    ).all()
    about = {lesson_id: (rollout, task, group, number) for lesson_id, rollout, task, group, number in rows}
    verdicts = answers.verdicts(session, [rollout.id for rollout, *_ in about.values() if not rollout.shown])
    linked = _find_linked(session, ids)
    judges = {answer_id for verdict in verdicts.values() for answer_id in verdict.judges}
    unjudged = _find_unjudged(session, verdicts, [(rollout, task) for rollout, task, *_ in about.values()])
    thinking = {*unjudged.values(), *_find_self_evaluated(session, judges.union(*linked.values()))}
    known = opinions.read(session, lessons[0].lineage_id, thinking) if thinking else opinions.NONE
    thought = opinions.find(session, known, unjudged) if known.seen else {}
    judges.update(opinion.answer_id for opinion in thought.values())
    shown_after = {rollout.id: _read_context(group) for rollout, _, group, _ in about.values() if rollout.shown}
    said = _load_answers(session, judges.union(*linked.values(), *shown_after.values()), known)
    return [
        _join_facts(
            lesson,
            *about[lesson.id],
            tuple(said[answer_id] for answer_id in linked.get(lesson.id, ())),
            verdicts.get(lesson.rollout_id),
            thought.get(lesson.rollout_id),
            shown_after.get(lesson.rollout_id, ()),
            said,
        )
        for lesson in lessons
    ]


def _read_context(group: GroupRow) -> list[UUID]:
    """The answers behind what the group's teacher was shown."""
    return [] if group.context is None else ShownContext.model_validate(group.context).answers


def _find_unjudged(
    session: Session, verdicts: Mapping[UUID, answers.Verdict], about: Sequence[tuple[RolloutRow, TaskRow]]
) -> dict[UUID, str]:
    """The policy's rollouts without a verdict in domains without a verifier, with their domains."""
    judged = {rollout_id for rollout_id, verdict in verdicts.items() if verdict.score is not None}
    domains = {one.id: task.domain for one, task in about if one.id not in judged and not one.shown}
    if not domains:
        return {}
    unjudged = opinions.find_unjudged(session, about[0][1].lineage_id, set(domains.values()))
    return {one: domain for one, domain in domains.items() if domain in unjudged}


def _find_self_evaluated(session: Session, answer_ids: Collection[UUID]) -> Sequence[str]:
    """The domains in which the policy's evaluation of itself says more than a score in these answers."""
    says_more = or_(
        *(
            part.is_not(None)
            for part in (AnswerRow.feedback, AnswerRow.solution, AnswerRow.precedents, AnswerRow.distribution_kind)
        )
    )
    return session.scalars(
        select(TaskRow.domain)
        .distinct()
        .join(RolloutRow, RolloutRow.task_id == TaskRow.id)
        .join(AnswerRow, AnswerRow.rollout_id == RolloutRow.id)
        .join(ExpertRow, ExpertRow.id == AnswerRow.expert_id)
        .where(AnswerRow.id.in_(answer_ids), trust.is_self(ExpertRow), says_more)
    ).all()


def _place() -> ColumnElement[int | None]:
    """Of the rollout's version; none where no version of ours is named."""
    return case((PolicyVersionRow.id.is_not(None), policies.place(PolicyVersionRow)))


def _find_linked(session: Session, lesson_ids: Sequence[UUID]) -> dict[UUID, list[UUID]]:
    """The answers that each lesson may use, oldest first, without withdrawn ones."""
    rows = session.execute(
        select(LessonAnswerRow.lesson_id, AnswerRow.id)
        .join(AnswerRow, AnswerRow.id == LessonAnswerRow.answer_id)
        .where(LessonAnswerRow.lesson_id.in_(lesson_ids), AnswerRow.status == AnswerStatus.CURRENT.value)
        .order_by(AnswerRow.id)
    )
    linked: dict[UUID, list[UUID]] = {}
    for lesson_id, answer_id in rows:
        linked.setdefault(lesson_id, []).append(answer_id)
    return linked


def _load_answers(session: Session, answer_ids: Collection[UUID], known: opinions.Opinions) -> dict[UUID, LessonAnswer]:
    rows = session.execute(
        select(AnswerRow, ExpertRow, DistributionRow, CorrectionRow.verdict, TaskRow)
        .join(ExpertRow, ExpertRow.id == AnswerRow.expert_id)
        .join(RolloutRow, RolloutRow.id == AnswerRow.rollout_id)
        .join(TaskRow, TaskRow.id == RolloutRow.task_id)
        .outerjoin(DistributionRow, DistributionRow.answer_id == AnswerRow.id)
        .outerjoin(
            CorrectionRow,
            (CorrectionRow.consultation_id == AnswerRow.consultation_id)
            & (CorrectionRow.status == CorrectionStatus.SUBMITTED.value),
        )
        .where(AnswerRow.id.in_(answer_ids))
    ).all()
    heard = answers.trace(session, list(answer_ids))
    told = [(answer, task.messages) for answer, *_, task in rows]
    precedents = held_out.read_precedents(session, rows[0][0].lineage_id, told) if rows else []
    return {
        answer.id: _join_answer(
            answer,
            expert,
            distribution,
            verdict is not None,
            heard[answer.id],
            known.may_weigh(expert, task.domain),
            shown,
        )
        for (answer, expert, distribution, verdict, task), shown in zip(rows, precedents, strict=True)
    }


def _join_answer(
    answer: AnswerRow,
    expert: ExpertRow,
    distribution: DistributionRow | None,
    corrected: bool,
    heard: Sequence[answers.Trace],
    may_weigh: bool,
    precedents: Sequence[Precedent],
) -> LessonAnswer:
    counts = may_weigh and trust.counts(answer, expert) and all(trust.counts(one.answer, one.expert) for one in heard)
    return LessonAnswer(
        id=answer.id,
        expert_id=expert.id,
        expert=expert.name,
        expert_version=answer.expert_version,
        weight=expert.weight if counts else 0.0,
        score=answer.score,
        feedback=None if answer.feedback is None else Feedback.model_validate(answer.feedback),
        solution=answer.solution,
        distribution=None if distribution is None else distributions.unpack(distribution),
        from_reference="reference" in trust.read_keys(expert),
        corrected=corrected,
        precedents=tuple(precedents),
        from_precedents="precedents" in trust.read_keys(expert),
        speakers=(
            answers.name_speaker(answer, expert),
            *(answers.name_speaker(one.answer, one.expert, one.shown_to) for one in heard),
        ),
    )


def _join_facts(
    lesson: LessonRow,
    rollout: RolloutRow,
    task: TaskRow,
    group: GroupRow,
    policy_number: int | None,
    linked: tuple[LessonAnswer, ...],
    verdict: answers.Verdict | None,
    opinion: opinions.Opinion | None,
    shown_after: Sequence[UUID],
    said: Mapping[UUID, LessonAnswer],
) -> LessonFacts:
    logprobs = rollout.sampler_logprobs
    sampling = group.sampling if rollout.shown else rollout.sampling
    return LessonFacts(
        lesson_id=lesson.id,
        rollout_id=rollout.id,
        group_id=rollout.group_id,
        group_size=group.size - group.num_shown,
        index_in_group=rollout.index_in_group,
        ordinal=lesson.ordinal,
        late=lesson.late,
        task_id=task.id,
        domain=task.domain,
        messages=tuple(Message.model_validate(message) for message in task.messages),
        prompt_token_ids=tuple(rollout.prompt_token_ids),
        token_ids=tuple(rollout.token_ids),
        text=rollout.text,
        answer_start=rollout.answer_start,
        sampler_logprobs=None if logprobs is None else tuple(logprobs),
        action_mask=tuple(rollout.action_mask),
        sampling=None if sampling is None else Sampling.model_validate(sampling),
        tokenized_at_ingest=rollout.tokenized_at_ingest,
        finish_reason=rollout.finish_reason,
        policy_number=policy_number,
        score=None if verdict is None else verdict.score,
        answers=linked,
        judges=() if verdict is None else tuple(said[answer_id] for answer_id in verdict.judges),
        opinion=None if opinion is None else LessonOpinion(opinion.chance, said[opinion.answer_id]),
        shown=rollout.shown,
        shown_after=tuple(said[answer_id] for answer_id in shown_after),
    )
