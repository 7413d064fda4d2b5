"""Erasing what a person wrote: the texts go, their hashes, lengths and numbers stay.

A table that keeps what people write is named in WRITTEN: it then loses the text of an erased person, and the hash of
every piece is kept in `erased_text`. Answers made of a person's corrections, and answers of experts that were shown
those, lose their text too and are withdrawn, so no lesson ever trains on them again. What an applied update learned
from them cannot be taken out here; which updates and versions that is, is part of the report.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from sqlalchemy import Boolean, ColumnElement, cast, delete, exists, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerStatus
from services.contracts.base import Json, JsonObject
from services.contracts.corrections import CorrectionStatus
from services.contracts.lessons import LessonStatus
from services.contracts.persons import Erasure, Role, ShapedUpdate
from services.contracts.updates import UpdateStatus
from services.store import audit, keys, passwords, persons, updates
from services.store.models import (
    AnswerRow,
    ApiKeyRow,
    ConsultationRow,
    CorrectionRow,
    DistributionRow,
    DraftRow,
    ErasedTextRow,
    ErasureRow,
    IdempotencyRow,
    LessonAnswerRow,
    LessonRow,
    LineageRow,
    LoginLinkRow,
    LoginSessionRow,
    PersonRow,
    PolicyVersionRow,
    RolloutRow,
    TeacherChoicesRow,
    UpdateLessonRow,
    UpdateRow,
)
from services.store.ranking import HUMAN_EXPERT

WRITTEN: Final = (
    ("correction", CorrectionRow, (CorrectionRow.text, CorrectionRow.comment, CorrectionRow.skip_reason)),
)
"""Tables with an `id` and a `person_id`, and their columns of text that the person wrote; nullable ones."""

DRAFTED: Final = ("text", "comment", "spans")
"""What a draft says in words; it goes as a whole."""

MADE: Final = ("solution", "feedback", "evidence")
"""What an answer made of a correction says in words."""

UNUSED: Final = (LessonStatus.READY.value, LessonStatus.CLAIMED.value)
REASON: Final = "a person's text was erased"


@dataclass
class _Pieces:
    """The texts found, each as its hash."""

    hashes: list[tuple[str, UUID, str, str, int]] = field(default_factory=list)

    def add(self, noun: str, noun_id: UUID, name: str, value: Json) -> None:
        if value is None or value == "":
            return
        said = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
        self.hashes.append((noun, noun_id, name, hashlib.sha256(said.encode()).hexdigest(), len(said)))


def preview(session: Session, person_id: UUID) -> Erasure:
    """What erasing this person's text would take out; or, of one who was erased, what it took out.

    Errors: PersonNotFound (404).
    """
    person = persons.get(session, person_id)
    if person.erased_at is not None:
        return _stored(session, person_id)
    made = _answers_made(session, person_id)
    pieces = _find(session, person_id, made)
    return _report(session, person_id, pieces, made, len(_emptied(session, made)), is_done=False)


def erase(session: Session, person_id: UUID) -> Erasure:
    """Take out a person's text, name, keys, sessions and password; doing it again changes nothing.

    Trainers wait meanwhile, and updates that had begun are abandoned: they may have read the text.

    Errors: PersonNotFound (404), LastOwner (409).
    """
    person = persons.get(session, person_id)
    keys.lock_owners(session)
    session.refresh(person, with_for_update=True)
    if person.erased_at is not None:
        return _stored(session, person_id)
    _lock(session, person_id)
    _begin_again(session, person_id)
    made = _answers_made(session, person_id)
    pieces = _find(session, person_id, made)
    emptied = _emptied(session, made)
    report = _report(session, person_id, pieces, made, len(emptied), is_done=True)
    _blank(session, person_id, made)
    session.execute(
        update(LessonRow)
        .where(LessonRow.id.in_(emptied))
        .values(status=LessonStatus.WITHDRAWN.value, reason=REASON, owner=None, lease_until=None)
    )
    _forget_person(session, person)
    row = ErasureRow(person_id=person_id, report=report.model_dump(mode="json"))
    session.add(row)
    session.flush()
    session.add_all(
        ErasedTextRow(erasure_id=row.id, noun=noun, noun_id=noun_id, field=name, sha256=sha256, num_chars=num_chars)
        for noun, noun_id, name, sha256, num_chars in pieces.hashes
    )
    session.flush()
    return report


def _stored(session: Session, person_id: UUID) -> Erasure:
    row = session.scalars(select(ErasureRow).where(ErasureRow.person_id == person_id)).one()
    return Erasure.model_validate(row.report)


def _lock(session: Session, person_id: UUID) -> None:
    """Rollouts first, then corrections, as everywhere; then no lesson is claimed or read until this is committed."""
    mine = CorrectionRow.person_id == person_id
    rollouts = select(CorrectionRow.rollout_id).where(mine)
    session.execute(select(RolloutRow.id).where(RolloutRow.id.in_(rollouts)).order_by(RolloutRow.id).with_for_update())
    session.execute(select(CorrectionRow.id).where(mine).order_by(CorrectionRow.id).with_for_update())
    session.execute(text("LOCK TABLE lesson IN SHARE ROW EXCLUSIVE MODE"))


def _begin_again(session: Session, person_id: UUID) -> None:
    """Abandon the updates that have begun in the lineages the person wrote for."""
    lineages = select(CorrectionRow.lineage_id).where(CorrectionRow.person_id == person_id)
    begun = session.scalars(
        select(UpdateRow.id).where(UpdateRow.lineage_id.in_(lineages), UpdateRow.status == UpdateStatus.STARTED.value)
    ).all()
    for update_id in begun:
        updates.abandon(session, update_id, REASON)


def _answers_made(session: Session, person_id: UUID) -> Sequence[AnswerRow]:
    """The answers made of the person's corrections, and those of experts that were shown them."""
    mine = select(CorrectionRow.consultation_id).where(CorrectionRow.person_id == person_id)
    shown = select(ConsultationRow.id).where(_was_shown(person_id))
    rollouts = select(CorrectionRow.rollout_id).where(CorrectionRow.person_id == person_id)
    return session.scalars(
        select(AnswerRow)
        .where(AnswerRow.rollout_id.in_(rollouts))  # for which there is an index
        .where(or_(AnswerRow.consultation_id.in_(mine), AnswerRow.consultation_id.in_(shown)))
        .order_by(AnswerRow.id)
    ).all()


def _was_shown(person_id: UUID) -> ColumnElement[bool]:
    """A condition on questions: what the person wrote about their rollout is part of them."""
    rollouts = select(CorrectionRow.rollout_id).where(CorrectionRow.person_id == person_id)
    holds = cast({"context": [{"expert": HUMAN_EXPERT}]}, JSONB)
    return ConsultationRow.rollout_id.in_(rollouts) & ConsultationRow.ask.op("@>", return_type=Boolean())(holds)


def _find(session: Session, person_id: UUID, made: Sequence[AnswerRow]) -> _Pieces:
    pieces = _Pieces()
    for noun, table, columns in WRITTEN:
        for row in session.scalars(select(table).where(table.person_id == person_id).order_by(table.id)):
            for column in columns:
                pieces.add(noun, row.id, column.key, getattr(row, column.key))
    drafts = select(DraftRow).where(DraftRow.person_id == person_id).order_by(DraftRow.correction_id)
    for draft in session.scalars(drafts):
        for name in DRAFTED:
            pieces.add("correction_draft", draft.correction_id, name, getattr(draft, name) or None)
    for answer in made:
        for name in MADE:
            pieces.add("answer", answer.id, name, getattr(answer, name))
    return pieces


def _emptied(session: Session, made: Sequence[AnswerRow]) -> Sequence[UUID]:
    """The lessons not yet used that nothing is left in."""
    ids = [answer.id for answer in made]
    of_lesson = LessonAnswerRow.lesson_id == LessonRow.id
    other = exists().where(
        of_lesson,
        AnswerRow.id == LessonAnswerRow.answer_id,
        AnswerRow.status == AnswerStatus.CURRENT.value,
        AnswerRow.id.not_in(ids),
    )
    return session.scalars(
        select(LessonRow.id)
        .where(LessonRow.status.in_(UNUSED), exists().where(of_lesson, LessonAnswerRow.answer_id.in_(ids)), ~other)
        .order_by(LessonRow.id)
    ).all()


def _report(
    session: Session, person_id: UUID, pieces: _Pieces, made: Sequence[AnswerRow], num_lessons: int, *, is_done: bool
) -> Erasure:
    shaped = _updates_shaped(session, made)
    return Erasure(
        person_id=person_id,
        is_done=is_done,
        texts=dict(Counter(noun for noun, *_ in pieces.hashes)),
        chars=sum(num_chars for *_, num_chars in pieces.hashes),
        answers=len(made),
        lessons=num_lessons,
        updates=[ShapedUpdate(lineage=name, number=number) for _, name, number in shaped],
        policy_versions=_versions_carrying(session, shaped),
    )


def _updates_shaped(session: Session, made: Sequence[AnswerRow]) -> list[tuple[UUID, str, int]]:
    """Lineage (id, name) and number of the applied updates with a term made from one of these answers.

    A term is made of answers about its own task only, so no other lesson is looked at.
    """
    tasks = select(RolloutRow.task_id).where(RolloutRow.id.in_({answer.rollout_id for answer in made}))
    rows = session.execute(
        select(LineageRow.id, LineageRow.name, UpdateRow.number, UpdateLessonRow.terms)
        .join(UpdateRow, UpdateRow.lineage_id == LineageRow.id)
        .join(UpdateLessonRow, UpdateLessonRow.update_id == UpdateRow.id)
        .join(LessonRow, LessonRow.id == UpdateLessonRow.lesson_id)
        .join(RolloutRow, RolloutRow.id == LessonRow.rollout_id)
        .where(RolloutRow.task_id.in_(tasks), UpdateLessonRow.status == UpdateStatus.APPLIED.value)
    )
    ids = {str(answer.id) for answer in made}
    return sorted(
        {(lineage, name, number) for lineage, name, number, terms in rows if not ids.isdisjoint(_named(terms))}
    )


def _named(terms: Iterable[JsonObject]) -> set[str]:
    """The ids of the answers that terms were made of."""
    return {str(answer) for term in terms for answer in _list(term.get("answers"))}


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _versions_carrying(session: Session, shaped: Sequence[tuple[UUID, str, int]]) -> list[str]:
    """Every policy version from the first of these updates on: weights are made from the weights before them."""
    first: dict[UUID, int] = {}
    for lineage, _, number in shaped:
        first[lineage] = min(number, first.get(lineage, number))
    names: list[str] = []
    for lineage, number in first.items():
        carrying = select(PolicyVersionRow.name).where(
            PolicyVersionRow.lineage_id == lineage, PolicyVersionRow.update_number >= number
        )
        names += session.scalars(carrying.order_by(PolicyVersionRow.number))
    return names


def _blank(session: Session, person_id: UUID, made: Sequence[AnswerRow]) -> None:
    """Take the texts out, and give back what the person holds."""
    for question in session.scalars(select(ConsultationRow).where(_was_shown(person_id)).with_for_update()):
        others = [said for said in _list(question.ask.get("context")) if not _is_by_people(said)]
        question.ask = {**question.ask, "context": others}
    for _, table, columns in WRITTEN:
        session.execute(
            update(table).where(table.person_id == person_id).values({column.key: None for column in columns})
        )
    session.execute(delete(DraftRow).where(DraftRow.person_id == person_id))
    session.execute(
        update(CorrectionRow)
        .where(CorrectionRow.person_id == person_id, CorrectionRow.status == CorrectionStatus.CLAIMED.value)
        .values(status=CorrectionStatus.OPEN.value, person_id=None, lease_until=None)
    )
    ids = [answer.id for answer in made]
    session.execute(delete(DistributionRow).where(DistributionRow.answer_id.in_(ids)))
    # What a teacher that was shown the text would have said is the text again, token by token.
    tasks = select(RolloutRow.task_id).where(RolloutRow.id.in_({answer.rollout_id for answer in made}))
    lessons = select(LessonRow.id).join(RolloutRow, RolloutRow.id == LessonRow.rollout_id)
    session.execute(
        delete(TeacherChoicesRow)
        .where(TeacherChoicesRow.lesson_id.in_(lessons.where(RolloutRow.task_id.in_(tasks))))
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(AnswerRow)
        .where(AnswerRow.id.in_(ids))
        .values(solution=None, feedback=None, evidence=None, distribution_kind=None)
    )
    session.execute(
        update(AnswerRow)
        .where(AnswerRow.id.in_(ids), AnswerRow.status == AnswerStatus.CURRENT.value)
        .values(status=AnswerStatus.WITHDRAWN.value)
    )


def _is_by_people(said: Json) -> bool:
    return isinstance(said, dict) and said.get("expert") == HUMAN_EXPERT


def _forget_person(session: Session, person: PersonRow) -> None:
    """Take out the name, every way to log in, and every answer that was kept to be given again."""
    keys.revoke_all(session, person.id)
    keys.check_owned(session, person)
    passwords.remove(session, person.id)
    passwords.forget_tries(session, person.name)
    for table in (LoginSessionRow, LoginLinkRow, ApiKeyRow):
        session.execute(delete(table).where(table.person_id == person.id))
    owners = session.scalars(select(PersonRow.id).where(PersonRow.role == Role.OWNER.value)).all()
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.principal == str(person.id)))
    session.execute(
        delete(IdempotencyRow).where(
            IdempotencyRow.principal.in_([str(owner) for owner in owners]),
            IdempotencyRow.route.startswith("POST /v1/persons"),
            IdempotencyRow.body.contains(str(person.id)),
        )
    )
    audit.forget_addresses(session, person.id)
    person.name = f"erased-{person.id.hex[-12:]}"
    person.erased_at = func.now()
    session.flush()
    session.refresh(person)
