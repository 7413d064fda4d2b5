"""Right answers to tasks: the policy's own that verifiers certified, people's corrections, and references.

Each is fixed given the prompt: it was there before the group that it is shown to was drawn, or is the same for every
rollout of the task. Only what counts is found; with `include_probation` also what experts on probation said, so that it
can be measured before it trains.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import ARRAY, ColumnElement, Select, Uuid, func, literal, select, true
from sqlalchemy.orm import InstrumentedAttribute, Session
from sqlalchemy.sql.selectable import TableValuedAlias

from services.contracts.answers import PASS_SCORE, AnswerKind, passes
from services.contracts.base import JsonObject
from services.contracts.corrections import CorrectionStatus
from services.contracts.experts import Descriptor
from services.contracts.rollouts import Purpose
from services.contracts.sources import ContextSource
from services.contracts.templates import strip_thinking
from services.store.loop import answers, opening, trust
from services.store.tables.corrections import CorrectionRow
from services.store.tables.loop import AnswerRow, ExpertRow, RolloutRow, TaskRow

MAX_TRIED: Final = 4
"""Newest successes of a task that are looked at. Where none of their verifiers counts any more, the task has none."""
MAX_READ: Final = 16
"""Newest rollouts of a task whose answers are read for what an expert says about all of them alike."""

ASKED_ALIKE: Final = (Purpose.TRAIN.value, Purpose.PROBE.value, Purpose.SCOUT.value)
"""Purposes of rollouts about which experts say the same whatever is in them."""

GIVEN: Final = {
    ContextSource.REFERENCE: AnswerKind.SOLUTION,
    ContextSource.PRECEDENTS: AnswerKind.PRECEDENTS,
}
"""What experts read off a task, as the metadata key that has the source's name, and the kind of answer it comes in."""

Said = tuple[AnswerRow, ExpertRow]


@dataclass(frozen=True)
class RightAnswer:
    """A right answer to a task. said: the answers of experts behind it; the first one's expert is credited.

    rollout_id: the rollout that it is, for the policy's own.
    """

    source: ContextSource
    text: str
    said: tuple[Said, ...]
    rollout_id: UUID | None = None


def find(
    session: Session, lineage_id: UUID, before: Mapping[UUID, UUID | None], *, include_probation: bool = False
) -> dict[UUID, list[RightAnswer]]:
    """The right answers to these tasks, at most one of each source and expert, in `SOURCE_ORDER`; a success that
    several verifiers certified is there once for each of them, by their ids.

    before: by task, the group that an own success or a correction must be older than, where one is named.
    """
    readers = find_readers(session, lineage_id, "reference", include_probation=include_probation)
    given = find_given(session, list(before), readers, AnswerRow.solution)
    found = [
        _find_successes(session, before),
        _find_unproven(session, before) if include_probation else {},
        _find_corrections(session, before),
        {task_id: [_quote(ContextSource.REFERENCE, one) for one in said] for task_id, said in given.items()},
    ]
    return {task_id: [one for part in found for one in part.get(task_id, []) if one.text] for task_id in before}


def find_readers(session: Session, lineage_id: UUID, key: str, *, include_probation: bool) -> dict[UUID, ExpertRow]:
    """The experts that may train and are given this key of a task's metadata."""
    usable = trust.may_train(ExpertRow)
    if include_probation:
        usable |= trust.is_on_probation(ExpertRow)
    return {expert.id: expert for expert in _find_experts(session, lineage_id, usable) if _reads(expert, key)}


def _find_experts(session: Session, lineage_id: UUID, usable: ColumnElement[bool]) -> Sequence[ExpertRow]:
    return session.scalars(select(ExpertRow).where(ExpertRow.lineage_id == lineage_id, usable)).all()


def _reads(expert: ExpertRow, key: str) -> bool:
    return key in trust.read_keys(expert)


@dataclass(frozen=True)
class Giver:
    """An expert that says the same about every rollout of a task, read off the task. source: what that is."""

    source: ContextSource
    expert: ExpertRow
    descriptor: Descriptor

    def serves(self, task: TaskRow) -> bool:
        """Whether the task carries what it reads."""
        return opening.serves(self.expert, self.descriptor, task.domain, task.metadata_.keys())


def find_givers(session: Session, lineage_id: UUID) -> list[Giver]:
    """The experts that may train and read a reference or precedents off tasks, once for each of these."""
    experts = _find_experts(session, lineage_id, trust.may_train(ExpertRow))
    descriptors = [(expert, Descriptor.model_validate(expert.descriptor)) for expert in experts]
    return [
        Giver(source, expert, descriptor)
        for source, kind in GIVEN.items()
        for expert, descriptor in descriptors
        if _reads(expert, source.value) and kind in descriptor.kinds
    ]


def find_given(
    session: Session,
    task_ids: Sequence[UUID],
    readers: Mapping[UUID, ExpertRow],
    part: InstrumentedAttribute[str | None] | InstrumentedAttribute[list[JsonObject] | None],
) -> dict[UUID, list[Said]]:
    """What these experts say about every rollout of a task alike, measured ones too, in this part of their answers: by
    task the newest answer of each."""
    if not readers or not task_ids:
        return {}
    wanted = _list_tasks(dict.fromkeys(task_ids))
    drawn = RolloutRow.purpose.in_(ASKED_ALIKE) & ~RolloutRow.shown
    newest = (
        select(RolloutRow.id)
        .where(RolloutRow.task_id == wanted.c.task_id, drawn)
        .order_by(RolloutRow.id.desc())
        .limit(MAX_READ)
        .lateral("newest")
    )
    rows = session.execute(
        select(wanted.c.task_id, AnswerRow)
        .select_from(wanted)
        .join(newest, true())
        .join(AnswerRow, AnswerRow.rollout_id == newest.c.id)
        .join(ExpertRow, ExpertRow.id == AnswerRow.expert_id)
        .where(
            AnswerRow.expert_id.in_(readers), part.is_not(None), answers.stands() | trust.is_tried(AnswerRow, ExpertRow)
        )
        .order_by(AnswerRow.id.desc())
    ).all()
    found: dict[UUID, dict[UUID, Said]] = {}
    for task_id, answer in rows:
        found.setdefault(task_id, {}).setdefault(answer.expert_id, (answer, readers[answer.expert_id]))
    return {task_id: list(said.values()) for task_id, said in found.items()}


def passed() -> ColumnElement[bool]:
    """The condition that a rollout for training is the policy's own and passed, as the index `ix_rollout_success` has
    it: with its numbers and words written out, since a prepared statement without them may not use the index."""
    purpose = literal(Purpose.TRAIN.value, literal_execute=True)
    score = literal(PASS_SCORE, literal_execute=True)
    return (RolloutRow.purpose == purpose) & ~RolloutRow.shown & (RolloutRow.score > score)


def _quote(source: ContextSource, said: Said) -> RightAnswer:
    return RightAnswer(source, strip_thinking(said[0].solution or ""), (said,))


def _list_tasks(before: Mapping[UUID, UUID | None]) -> TableValuedAlias:
    columns = literal(list(before), ARRAY(Uuid())), literal(list(before.values()), ARRAY(Uuid()))
    return func.unnest(*columns).table_valued("task_id", "before", name="wanted").render_derived()


def _newest_rollouts(wanted: TableValuedAlias) -> Select[UUID]:
    of_task = RolloutRow.task_id == wanted.c.task_id, RolloutRow.purpose == Purpose.TRAIN.value
    return select(RolloutRow.id).where(*of_task).order_by(RolloutRow.id.desc())


def _earlier_own(wanted: TableValuedAlias) -> Select[UUID]:
    is_earlier = wanted.c.before.is_(None) | (RolloutRow.group_id < wanted.c.before)
    return _newest_rollouts(wanted).where(~RolloutRow.shown, is_earlier)


def _find_successes(session: Session, before: Mapping[UUID, UUID | None]) -> dict[UUID, list[RightAnswer]]:
    """The newest success of each task whose verifiers still count."""
    wanted = _list_tasks(before)
    tried = _earlier_own(wanted).where(passed()).limit(MAX_TRIED).lateral("tried")
    ids = session.scalars(select(tried.c.id).select_from(wanted).join(tried, true())).all()
    verdicts = answers.verdicts(session, ids).values()
    judges = [one for verdict in verdicts if passes(verdict.score) for one in verdict.judges]
    return _newest_success(session, _read(session, AnswerRow.id.in_(judges)))


def _find_unproven(session: Session, before: Mapping[UUID, UUID | None]) -> dict[UUID, list[RightAnswer]]:
    """For each verifier on probation, the newest rollout of each task that it calls a success."""
    wanted = _list_tasks(before)
    newest = _earlier_own(wanted).limit(MAX_READ).lateral("newest")
    ids = session.scalars(select(newest.c.id).select_from(wanted).join(newest, true())).all()
    calls_right = (
        AnswerRow.rollout_id.in_(ids)
        & (AnswerRow.score > PASS_SCORE)
        & trust.is_judge(ExpertRow)
        & trust.is_tried(AnswerRow, ExpertRow)
    )
    by_verifier: dict[UUID, list[Said]] = {}
    for said in _read(session, calls_right):
        by_verifier.setdefault(said[1].id, []).append(said)
    found: dict[UUID, list[RightAnswer]] = {}
    for verdicts in by_verifier.values():
        for task_id, own in _newest_success(session, verdicts).items():
            found.setdefault(task_id, []).extend(own)
    return found


def _read(session: Session, which: ColumnElement[bool]) -> list[Said]:
    """These answers, by their experts' ids: who is credited with a success first does not hang on who is faster."""
    rows = select(AnswerRow, ExpertRow).join(ExpertRow, ExpertRow.id == AnswerRow.expert_id)
    return [
        (answer, expert)
        for answer, expert in session.execute(rows.where(which).order_by(AnswerRow.expert_id, AnswerRow.id))
    ]


def _newest_success(session: Session, verdicts: Sequence[Said]) -> dict[UUID, list[RightAnswer]]:
    """By task, the newest of the rollouts that these verdicts are about: once for each verdict, credited to it."""
    by_rollout: dict[UUID, list[Said]] = {}
    for said in verdicts:
        by_rollout.setdefault(said[0].rollout_id, []).append(said)
    rollouts = session.execute(
        select(RolloutRow.id, RolloutRow.task_id, RolloutRow.text)
        .where(RolloutRow.id.in_(by_rollout))
        .order_by(RolloutRow.id)
    )
    return {
        task_id: [
            RightAnswer(ContextSource.OWN_SUCCESS, strip_thinking(text), said, rollout_id)
            for said in _put_each_first(by_rollout[rollout_id])
        ]
        for rollout_id, task_id, text in rollouts
    }


def _put_each_first(said: Sequence[Said]) -> Iterator[tuple[Said, ...]]:
    for place, one in enumerate(said):
        yield one, *said[:place], *said[place + 1 :]


def _find_corrections(session: Session, before: Mapping[UUID, UUID | None]) -> dict[UUID, list[RightAnswer]]:
    """The newest correction of each task that people no longer hold back, from an earlier group."""
    rows = session.execute(
        select(AnswerRow, ExpertRow, RolloutRow.task_id, RolloutRow.group_id)
        .join(CorrectionRow, CorrectionRow.consultation_id == AnswerRow.consultation_id)
        .join(ExpertRow, ExpertRow.id == AnswerRow.expert_id)
        .join(RolloutRow, RolloutRow.id == AnswerRow.rollout_id)
        .where(
            RolloutRow.task_id.in_(before),
            AnswerRow.solution.is_not(None),
            CorrectionRow.status == CorrectionStatus.SUBMITTED.value,
            CorrectionRow.held_until.is_(None) | (CorrectionRow.held_until <= func.now()),
            answers.stands(),
        )
        .order_by(AnswerRow.id)
    )
    found: dict[UUID, list[RightAnswer]] = {}
    for answer, expert, task_id, group_id in rows:
        limit = before[task_id]
        if limit is None or group_id < limit:
            found[task_id] = [_quote(ContextSource.CORRECTION, (answer, expert))]
    return found
