"""One page of each noun, newest first and filtered."""

from collections.abc import Sequence
from enum import StrEnum
from typing import TypeVar
from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, defer

from services.contracts.answers import Answer
from services.contracts.base import Page
from services.contracts.consultations import Attempt, Consultation, ConsultationDetail, ConsultationStatus
from services.contracts.corrections import Correction, CorrectionStatus
from services.contracts.draws import Draw
from services.contracts.evaluations import Evaluation
from services.contracts.experts import Expert, ExpertStatus
from services.contracts.lessons import Lesson, LessonStatus
from services.contracts.measurements import Measurement, MeasurementStatus
from services.contracts.persons import Person, Right
from services.contracts.policies import PolicyStatus, PolicyVersion
from services.contracts.rollouts import GroupStatus, Purpose, Rollout, RolloutStatus
from services.contracts.tasks import Split, Task
from services.contracts.updates import Update, UpdateStatus
from services.store.core.pages import newest_first
from services.store.corrections import corrections
from services.store.ledger import policies, updates
from services.store.loop import answers, consultations, evaluations, experts, rollouts, tasks, trust
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import LessonRow, PolicyVersionRow, UpdateRow
from services.store.tables.loop import (
    AnswerRow,
    AttemptRow,
    ConsultationRow,
    EvaluationRow,
    ExpertRow,
    GroupRow,
    RolloutRow,
    TaskRow,
)
from services.store.tables.people import PersonRow
from services.store.tables.teaching import MeasurementRow

R = TypeVar("R")


def list_tasks(
    session: Session,
    lineage_id: UUID,
    *,
    split: Split | None,
    domain: str | None,
    family: str | None,
    cursor: str | None,
    limit: int,
) -> Page[Task]:
    """Tasks. Errors: BadCursor."""
    query = _only(select(TaskRow), lineage_id=lineage_id, split=split, domain=domain, family=family)
    rows, following = newest_first(session, query, TaskRow.id, cursor, limit)
    return Page[Task](items=[tasks.view(row) for row in rows], next_cursor=following)


def list_rollouts(
    session: Session,
    lineage_id: UUID,
    rights: frozenset[Right],
    *,
    task_id: UUID | None,
    group_id: UUID | None,
    status: RolloutStatus | None,
    purpose: Purpose | None,
    policy_version: str | None = None,
    domain: str | None = None,
    cursor: str | None,
    limit: int,
) -> Page[Rollout]:
    """Rollouts without their tokens, as a person with these rights may see them. Errors: BadCursor."""
    tokens = (RolloutRow.prompt_token_ids, RolloutRow.sampler_logprobs, RolloutRow.action_mask)
    query = select(RolloutRow).where(RolloutRow.lineage_id == lineage_id).options(*map(defer, tokens))
    query = _only(
        query, task_id=task_id, group_id=group_id, status=status, purpose=purpose, policy_version=policy_version
    )
    if domain is not None:
        query = query.where(
            RolloutRow.task_id.in_(select(TaskRow.id).where(TaskRow.lineage_id == lineage_id, TaskRow.domain == domain))
        )
    rows, following = newest_first(session, query, RolloutRow.id, cursor, limit)
    hidden = rollouts.find_hidden(session, rows, rights)
    found = [Rollout.model_validate(row) for row in rows]
    items = [one.model_copy(update={"text": ""}) if one.id in hidden else one for one in found]
    return Page[Rollout](items=items, next_cursor=following)


def list_lessons(
    session: Session,
    lineage_id: UUID,
    *,
    status: LessonStatus | None,
    rollout_id: UUID | None,
    cursor: str | None,
    limit: int,
) -> Page[Lesson]:
    """Lessons. Errors: BadCursor."""
    query = _only(select(LessonRow), lineage_id=lineage_id, status=status, rollout_id=rollout_id)
    rows, following = newest_first(session, query, LessonRow.id, cursor, limit)
    return Page[Lesson](items=[Lesson.model_validate(row) for row in rows], next_cursor=following)


def list_experts(
    session: Session,
    lineage_id: UUID,
    rights: frozenset[Right],
    *,
    status: ExpertStatus | None,
    cursor: str | None,
    limit: int,
) -> Page[Expert]:
    """Experts, as a person with these rights may see them. Errors: BadCursor."""
    query = _only(select(ExpertRow), lineage_id=lineage_id, status=status)
    rows, following = newest_first(session, query, ExpertRow.id, cursor, limit)
    return Page[Expert](items=[experts.view(row, rights) for row in rows], next_cursor=following)


def list_measurements(
    session: Session,
    lineage_id: UUID,
    *,
    expert_id: UUID | None,
    domain: str | None,
    status: MeasurementStatus | None,
    cursor: str | None,
    limit: int,
) -> Page[Measurement]:
    """Measurements. Errors: BadCursor."""
    query = _only(select(MeasurementRow), lineage_id=lineage_id, expert_id=expert_id, domain=domain, status=status)
    rows, following = newest_first(session, query, MeasurementRow.id, cursor, limit)
    return Page[Measurement](items=[Measurement.model_validate(row) for row in rows], next_cursor=following)


def name_experts(session: Session, expert_ids: set[UUID]) -> dict[UUID, str]:
    """The names of these experts."""
    rows = session.execute(select(ExpertRow.id, ExpertRow.name).where(ExpertRow.id.in_(expert_ids)))
    return {row.id: row.name for row in rows}


def list_consultations(
    session: Session,
    lineage_id: UUID,
    rights: frozenset[Right],
    *,
    rollout_id: UUID | None,
    expert_id: UUID | None,
    status: ConsultationStatus | None,
    cursor: str | None,
    limit: int,
) -> Page[Consultation]:
    """Consultations, as a person with these rights may see them. Errors: BadCursor."""
    query = _only(
        select(ConsultationRow), lineage_id=lineage_id, rollout_id=rollout_id, expert_id=expert_id, status=status
    )
    rows, following = newest_first(session, query, ConsultationRow.id, cursor, limit)
    names = name_experts(session, {row.expert_id for row in rows})
    hidden = find_hidden(session, rows, rights)
    items = [_view_consultation(row, names[row.expert_id], row.id in hidden) for row in rows]
    return Page[Consultation](items=items, next_cursor=following)


def list_draws(
    session: Session, lineage_id: UUID, *, status: GroupStatus | None, cursor: str | None, limit: int
) -> Page[Draw]:
    """Draws. Errors: BadCursor."""
    query = _only(select(GroupRow).where(~GroupRow.external), lineage_id=lineage_id, status=status)
    rows, following = newest_first(session, query, GroupRow.id, cursor, limit)
    return Page[Draw](items=view_draws(session, rows), next_cursor=following)


def view_draws(session: Session, rows: Sequence[GroupRow]) -> list[Draw]:
    """The contracts of rows, with the keys of their tasks."""
    tasks_of = select(TaskRow.id, TaskRow.key).where(TaskRow.id.in_({row.task_id for row in rows}))
    keys = dict(session.execute(tasks_of).all())
    names = [name for name in Draw.model_fields if name != "task_key"]
    return [
        Draw.model_validate({name: getattr(row, name) for name in names} | {"task_key": keys[row.task_id]})
        for row in rows
    ]


def find_hidden(session: Session, rows: Sequence[ConsultationRow], rights: frozenset[Right]) -> set[UUID]:
    """The consultations whose reasons are hidden from a person with these rights: they may quote metadata."""
    return set() if trust.may_read_metadata(rights) else consultations.find_quoting(session, rows)


def consultation(session: Session, consultation_id: UUID, rights: frozenset[Right]) -> ConsultationDetail:
    """One consultation with its tries, as a person with these rights may see it. Errors: ConsultationNotFound."""
    row = consultations.get(session, consultation_id)
    tries = session.scalars(select(AttemptRow).where(AttemptRow.consultation_id == row.id).order_by(AttemptRow.number))
    name = name_experts(session, {row.expert_id})[row.expert_id]
    is_hidden = bool(find_hidden(session, [row], rights))
    return ConsultationDetail(
        **_view_consultation(row, name, is_hidden).model_dump(), tries=[view_attempt(one, is_hidden) for one in tries]
    )


def view_attempt(row: AttemptRow, is_hidden: bool) -> Attempt:
    """The contract of a try; without its reason where that is hidden."""
    attempt = Attempt.model_validate(row)
    return attempt.model_copy(update={"reason": None}) if is_hidden else attempt


def list_answers(
    session: Session, rollout_id: UUID, rights: frozenset[Right], *, cursor: str | None, limit: int
) -> Page[Answer]:
    """Answers about a rollout, withdrawn ones too, as a person with these rights may see them. Errors: BadCursor."""
    query = select(AnswerRow).where(AnswerRow.rollout_id == rollout_id)
    rows, following = newest_first(session, query, AnswerRow.id, cursor, limit)
    return Page[Answer](items=[answers.view(row, rights) for row in rows], next_cursor=following)


def list_corrections(
    session: Session,
    lineage_id: UUID,
    *,
    person_id: UUID | None,
    status: CorrectionStatus | None,
    cursor: str | None,
    limit: int,
) -> Page[Correction]:
    """Items of the human queue. Errors: BadCursor."""
    query = _only(select(CorrectionRow), lineage_id=lineage_id, person_id=person_id, status=status)
    rows, following = newest_first(session, query, CorrectionRow.id, cursor, limit)
    return Page[Correction](items=[corrections.view(row) for row in rows], next_cursor=following)


def list_policies(
    session: Session, lineage_id: UUID, *, status: PolicyStatus | None, cursor: str | None, limit: int
) -> Page[PolicyVersion]:
    """Policy versions. Errors: BadCursor."""
    query = _only(select(PolicyVersionRow), lineage_id=lineage_id, status=status)
    rows, following = newest_first(session, query, PolicyVersionRow.id, cursor, limit)
    return Page[PolicyVersion](items=[policies.view(row) for row in rows], next_cursor=following)


def list_updates(
    session: Session, lineage_id: UUID, *, status: UpdateStatus | None, cursor: str | None, limit: int
) -> Page[Update]:
    """Updates. Errors: BadCursor."""
    query = _only(select(UpdateRow), lineage_id=lineage_id, status=status)
    rows, following = newest_first(session, query, UpdateRow.id, cursor, limit)
    return Page[Update](items=[updates.view(row) for row in rows], next_cursor=following)


def list_evaluations(session: Session, lineage_id: UUID, *, cursor: str | None, limit: int) -> Page[Evaluation]:
    """Evaluations. Errors: BadCursor."""
    query = _only(select(EvaluationRow), lineage_id=lineage_id)
    rows, following = newest_first(session, query, EvaluationRow.id, cursor, limit)
    return Page[Evaluation](items=[evaluations.view(session, row) for row in rows], next_cursor=following)


def list_persons(session: Session, *, cursor: str | None, limit: int) -> Page[Person]:
    """Persons and services. Errors: BadCursor."""
    rows, following = newest_first(session, select(PersonRow), PersonRow.id, cursor, limit)
    return Page[Person](items=[Person.model_validate(row) for row in rows], next_cursor=following)


def _only(query: Select[R], **columns: UUID | str | None) -> Select[R]:
    """The query narrowed to rows with these values; None leaves a column open."""
    wanted = {name: value for name, value in columns.items() if value is not None}
    return query.filter_by(
        **{name: value.value if isinstance(value, StrEnum) else value for name, value in wanted.items()}
    )


def _view_consultation(row: ConsultationRow, expert_name: str, is_hidden: bool) -> Consultation:
    columns = {name: getattr(row, name) for name in Consultation.model_fields if name != "expert_name"}
    if is_hidden:
        columns["reason"] = None
    return Consultation.model_validate(columns | {"expert_name": expert_name})
