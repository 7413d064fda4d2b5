"""Everything about one rollout in the order it happened: drawn, asked about, answered, made a lesson, trained on."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.contracts.answers import Answer
from services.contracts.consultations import Attempt
from services.contracts.lessons import Lesson
from services.contracts.persons import Right
from services.contracts.sources import ShownContext
from services.contracts.updates import TermRecord
from services.store.loop import rollouts
from services.store.loop.answers import view as view_answer
from services.store.tables.ledger import LessonRow, UpdateLessonRow, UpdateRow
from services.store.tables.loop import AnswerRow, AttemptRow, ConsultationRow, ExpertRow, RolloutRow, TaskRow
from services.store.views.browse import find_hidden, view_attempt

MAX_SIBLINGS = 64


@dataclass(frozen=True)
class Sibling:
    """Another answer to the same prompt, drawn with this one."""

    id: UUID
    index_in_group: int
    status: str
    score: float | None
    shown: bool


@dataclass(frozen=True)
class ConsultationStory:
    """One consultation with its tries and its answer."""

    id: UUID
    expert_id: UUID
    expert_name: str
    expert_version: str
    is_verifier: bool
    stage: int
    status: str
    reason: str | None
    created_at: datetime
    settled_at: datetime | None
    tries: tuple[Attempt, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Use:
    """An update that used, or began to use, a lesson."""

    number: int
    status: str
    staleness: int | None
    future_nonzero: bool
    terms: tuple[TermRecord, ...]


@dataclass(frozen=True)
class LessonStory:
    """A lesson of the rollout and the updates that had it."""

    lesson: Lesson
    uses: tuple[Use, ...]


@dataclass(frozen=True)
class Story:
    """A rollout with all that hangs on it. shown_after: what the teacher was shown that drew it; without messages for
    somebody who may not read them."""

    rollout: RolloutRow
    task: TaskRow
    shown_after: ShownContext | None
    siblings: tuple[Sibling, ...]
    consultations: tuple[ConsultationStory, ...]
    lessons: tuple[LessonStory, ...]


def read(session: Session, rollout: RolloutRow, rights: frozenset[Right]) -> Story:
    """The story of a rollout, as a person with these rights may see it."""
    return Story(
        rollout=rollout,
        task=session.get_one(TaskRow, rollout.task_id),
        shown_after=rollouts.detail(session, rollout, rights).shown_after,
        siblings=tuple(_find_siblings(session, rollout)),
        consultations=tuple(_read_consultations(session, rollout.id, rights)),
        lessons=tuple(_read_lessons(session, rollout.id)),
    )


def _find_siblings(session: Session, rollout: RolloutRow) -> list[Sibling]:
    rows = session.execute(
        select(RolloutRow.id, RolloutRow.index_in_group, RolloutRow.status, RolloutRow.score, RolloutRow.shown)
        .where(RolloutRow.group_id == rollout.group_id)
        .order_by(RolloutRow.index_in_group)
        .limit(MAX_SIBLINGS)
    )
    return [Sibling(*row) for row in rows]


def _read_consultations(session: Session, rollout_id: UUID, rights: frozenset[Right]) -> list[ConsultationStory]:
    rows = session.execute(
        select(ConsultationRow, ExpertRow.name, ExpertRow.descriptor["verifier"].as_boolean())
        .join(ExpertRow, ExpertRow.id == ConsultationRow.expert_id)
        .where(ConsultationRow.rollout_id == rollout_id)
        .order_by(ConsultationRow.stage, ConsultationRow.id)
    ).all()
    ids = [row.id for row, _, _ in rows]
    hidden = find_hidden(session, [row for row, _, _ in rows], rights)
    tries: dict[UUID, list[Attempt]] = {}
    for one in session.scalars(
        select(AttemptRow).where(AttemptRow.consultation_id.in_(ids)).order_by(AttemptRow.number)
    ):
        tries.setdefault(one.consultation_id, []).append(view_attempt(one, one.consultation_id in hidden))
    answers: dict[UUID, list[Answer]] = {}
    for said in session.scalars(select(AnswerRow).where(AnswerRow.rollout_id == rollout_id).order_by(AnswerRow.id)):
        answers.setdefault(said.consultation_id, []).append(view_answer(said, rights))
    return [
        ConsultationStory(
            id=row.id,
            expert_id=row.expert_id,
            expert_name=name,
            expert_version=row.expert_version,
            is_verifier=is_verifier,
            stage=row.stage,
            status=row.status,
            reason=None if row.id in hidden else row.reason,
            created_at=row.created_at,
            settled_at=row.settled_at,
            tries=tuple(tries.get(row.id, ())),
            answers=tuple(answers.get(row.id, ())),
        )
        for row, name, is_verifier in rows
    ]


def _read_lessons(session: Session, rollout_id: UUID) -> list[LessonStory]:
    rows = session.scalars(
        select(LessonRow).where(LessonRow.rollout_id == rollout_id).order_by(LessonRow.ordinal)
    ).all()
    return [LessonStory(Lesson.model_validate(row), tuple(_find_uses(session, row.id))) for row in rows]


def _find_uses(session: Session, lesson_id: UUID) -> list[Use]:
    rows = session.execute(
        select(UpdateLessonRow, UpdateRow.number)
        .join(UpdateRow, UpdateRow.id == UpdateLessonRow.update_id)
        .where(UpdateLessonRow.lesson_id == lesson_id)
        .order_by(UpdateRow.id)
    )
    return [
        Use(
            number=number,
            status=row.status,
            staleness=row.staleness,
            future_nonzero=row.future_nonzero,
            terms=tuple(TermRecord.model_validate(term) for term in row.terms),
        )
        for row, number in rows
    ]
