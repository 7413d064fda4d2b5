"""Lessons: which may be trained on next, who holds them, and everything a trainer needs to know about them.

A trainer takes whole groups (siblings share a baseline) and, beside them, late lessons one by one. A claim is a lease:
its owner must renew it, and only the owner's commit counts (see `services.store.ledger.updates`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, case, exists, func, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from services.contracts.answers import AnswerStatus, Distribution, Feedback
from services.contracts.corrections import CorrectionStatus
from services.contracts.lessons import Lesson, LessonStatus
from services.contracts.rollouts import GroupStatus, RolloutStatus, Sampling
from services.contracts.sources import ShownContext
from services.contracts.tasks import Message, Precedent
from services.contracts.updates import Speaker, UpdateStatus
from services.store.ledger import distributions, policies
from services.store.loop import answers, held_out, opinions, rollouts, trust
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import LessonAnswerRow, LessonRow, PolicyVersionRow, UpdateLessonRow, UpdateRow
from services.store.tables.loop import AnswerRow, DistributionRow, ExpertRow, GroupRow, RolloutRow, TaskRow

MAX_ALONE: Final = 64
"""Rollouts from outside without siblings that one update takes: all that usually wait, and not hours of work."""


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


def set_aside_stale(session: Session, lineage_id: UUID, max_staleness: int) -> int:
    """Set aside waiting lessons that were sampled so many versions ago; returns how many. Only served versions count.

    Late lessons never age: they are read off the rollout itself. The same holds for a person's correction of a rollout
    that is stale by now, which goes on in a late lesson of its own.
    """
    stale = (
        select(LessonRow.id)
        .join(RolloutRow, RolloutRow.id == LessonRow.rollout_id)
        .join(
            PolicyVersionRow,
            (PolicyVersionRow.name == RolloutRow.policy_version) & (PolicyVersionRow.lineage_id == lineage_id),
        )
        .where(
            LessonRow.lineage_id == lineage_id,
            LessonRow.status == LessonStatus.READY.value,
            ~LessonRow.late,
            policies.is_stale(lineage_id, max_staleness),
        )
        .order_by(LessonRow.id)
        .with_for_update(of=LessonRow, skip_locked=True)
    )
    ids = session.scalars(stale).all()
    session.execute(
        update(LessonRow)
        .where(LessonRow.id.in_(ids), LessonRow.status == LessonStatus.READY.value)
        .values(
            status=LessonStatus.SET_ASIDE.value,
            reason=f"stale: sampled over {max_staleness} serving versions ago",
        )
    )
    _keep_corrections(session, ids)
    return len(ids)


def _keep_corrections(session: Session, lesson_ids: Sequence[UUID]) -> None:
    """Give the corrections in these lessons, which were set aside, lessons of their own."""
    kept = session.execute(
        select(RolloutRow, AnswerRow)
        .join(LessonRow, LessonRow.rollout_id == RolloutRow.id)
        .join(LessonAnswerRow, LessonAnswerRow.lesson_id == LessonRow.id)
        .join(AnswerRow, AnswerRow.id == LessonAnswerRow.answer_id)
        .join(ExpertRow, ExpertRow.id == AnswerRow.expert_id)
        .join(CorrectionRow, CorrectionRow.consultation_id == AnswerRow.consultation_id)
        .where(
            LessonRow.id.in_(lesson_ids),
            CorrectionRow.status == CorrectionStatus.SUBMITTED.value,
            trust.counts(AnswerRow, ExpertRow),
        )
        .order_by(RolloutRow.id)
    ).all()
    for rollout, answer in kept:
        rollouts.open_lesson(session, rollout, [answer], late=True)


def count_ready(session: Session, lineage_id: UUID) -> int:
    """How many rollouts could be claimed now with their groups, those that came alone among them."""
    ready = _claimable_groups(lineage_id).add_columns(GroupRow.size).subquery()
    return int(session.scalars(select(func.coalesce(func.sum(ready.c.size), 0))).one())


def count_ready_late(session: Session, lineage_id: UUID) -> int:
    """How many late lessons could be claimed now."""
    return session.scalars(
        select(func.count()).where(
            LessonRow.lineage_id == lineage_id,
            LessonRow.late,
            LessonRow.status == LessonStatus.READY.value,
            ~_is_held(LessonRow.rollout_id),
        )
    ).one()


def claim(
    session: Session, lineage_id: UUID, owner: UUID, *, num_rollouts: int, max_late: int, lease_seconds: float
) -> list[LessonRow]:
    """Take whole groups of about `num_rollouts` together (`fill`), up to `MAX_ALONE` rollouts that came from outside
    without siblings and up to `max_late` late lessons, under a lease.

    Groups are taken from each domain in turn, the oldest of every domain before the second of any, so that an update
    mixes domains wherever several wait; which domains go first is told by age, so none waits for ever. A group is
    whole when all its rollouts are drawn and settled. What another owner holds is passed over. The rows are ordered by
    group, place in the group and ordinal, late lessons last.
    """
    groups = [
        *_take_groups(session, _claimable_groups(lineage_id).where(~_IS_ALONE), num_rollouts),
        *_take_groups(session, _claimable_groups(lineage_id).where(_IS_ALONE), MAX_ALONE),
    ]
    late = session.scalars(
        select(LessonRow.id)
        .where(
            LessonRow.lineage_id == lineage_id,
            LessonRow.late,
            LessonRow.status == LessonStatus.READY.value,
            ~_is_held(LessonRow.rollout_id),
        )
        .order_by(LessonRow.id)
        .limit(max_late)
        .with_for_update(skip_locked=True)
    ).all()
    claimed = session.scalars(
        update(LessonRow)
        .where(
            LessonRow.lineage_id == lineage_id,
            LessonRow.status == LessonStatus.READY.value,
            (LessonRow.group_id.in_(groups) & ~LessonRow.late) | LessonRow.id.in_(late),
        )
        .values(status=LessonStatus.CLAIMED.value, owner=owner, lease_until=_lease(lease_seconds), reason=None)
        .returning(LessonRow)
        .execution_options(populate_existing=True)
    ).all()
    index = dict(
        session.execute(
            select(RolloutRow.id, RolloutRow.index_in_group).where(RolloutRow.id.in_([r.rollout_id for r in claimed]))
        ).all()
    )
    return sorted(claimed, key=lambda row: (row.late, row.group_id, index[row.rollout_id], row.ordinal))


def _take_groups(session: Session, groups: Select[UUID], num_rollouts: int) -> Sequence[UUID]:
    """Lock some of these groups, from each domain in turn, with about so many rollouts together."""
    in_domain = func.row_number().over(partition_by=TaskRow.domain, order_by=GroupRow.id)
    ranked = groups.join(TaskRow, TaskRow.id == GroupRow.task_id).add_columns(in_domain.label("turn")).subquery()
    waiting = session.execute(
        select(GroupRow.id, GroupRow.size)
        .join(ranked, ranked.c.id == GroupRow.id)
        .order_by(ranked.c.turn, GroupRow.id)
        .limit(num_rollouts)
        .with_for_update(of=GroupRow, skip_locked=True)
    ).all()
    return fill(waiting, num_rollouts)


def fill(waiting: Sequence[tuple[UUID, int]], num_rollouts: int) -> list[UUID]:
    """Of waiting groups, with their sizes, those that fit one after another, the first in any case; where they come to
    less than half, the first that did not fit as well."""
    taken, passed, room = list[UUID](), list[UUID](), num_rollouts
    for group_id, size in waiting:
        if size <= room or not taken:
            taken.append(group_id)
            room -= size
        else:
            passed.append(group_id)
    return taken + passed[: int(2 * room > num_rollouts)]


def renew(session: Session, owner: UUID, lease_seconds: float) -> int:
    """Extend the leases of everything the owner holds; how many lessons that is."""
    renewed = session.scalars(
        update(LessonRow)
        .where(LessonRow.owner == owner, LessonRow.status == LessonStatus.CLAIMED.value)
        .values(lease_until=_lease(lease_seconds))
        .returning(LessonRow.id)
    )
    return len(renewed.all())


def free_expired(session: Session) -> int:
    """Release lessons whose lease ran out, and abandon the updates they were claimed for; how many lessons."""
    expired = session.scalars(
        select(LessonRow.id)
        .where(LessonRow.status == LessonStatus.CLAIMED.value, LessonRow.lease_until < func.now())
        .order_by(LessonRow.id)
        .with_for_update(skip_locked=True)
    ).all()
    held_by = select(UpdateLessonRow.update_id).where(
        UpdateLessonRow.lesson_id.in_(expired), UpdateLessonRow.status == UpdateStatus.STARTED.value
    )
    abandoned = session.scalars(
        update(UpdateRow)
        .where(UpdateRow.id.in_(held_by), UpdateRow.status == UpdateStatus.STARTED.value)
        .values(status=UpdateStatus.ABANDONED.value, reason="the lease ran out")
        .returning(UpdateRow.id)
    ).all()
    session.execute(
        update(UpdateLessonRow)
        .where(UpdateLessonRow.update_id.in_(abandoned))
        .values(status=UpdateStatus.ABANDONED.value)
    )
    session.execute(
        update(LessonRow)
        .where(LessonRow.id.in_(expired))
        .values(status=LessonStatus.READY.value, owner=None, lease_until=None)
    )
    return len(expired)


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


def view(row: LessonRow) -> Lesson:
    """The contract of a row."""
    return Lesson.model_validate(row)


def _lease(seconds: float) -> ColumnElement[datetime]:
    return func.now() + timedelta(seconds=seconds)


def _is_held(rollout_id: ColumnElement[UUID] | InstrumentedAttribute[UUID]) -> ColumnElement[bool]:
    """A person who just corrected the rollout may still change their mind (`CorrectionSubmit.hold_seconds`)."""
    return exists().where(CorrectionRow.rollout_id == rollout_id, CorrectionRow.held_until > func.now())


_IS_ALONE: Final = GroupRow.external & (GroupRow.size == 1)


def _claimable_groups(lineage_id: UUID) -> Select[UUID]:
    in_group = LessonRow.group_id == GroupRow.id
    return select(GroupRow.id).where(
        GroupRow.lineage_id == lineage_id,
        GroupRow.status == GroupStatus.SAMPLED.value,
        exists().where(in_group, LessonRow.status == LessonStatus.READY.value, ~LessonRow.late),
        ~exists().where(in_group, LessonRow.status == LessonStatus.OPEN.value),
        ~exists().where(RolloutRow.group_id == GroupRow.id, RolloutRow.status == RolloutStatus.OPEN.value),
    )


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
