"""Erasing a person's texts; their hashes, lengths and numbers stay.

WRITTEN names every table that holds people's texts. An erased person's texts are deleted there, and the hash of each
is kept in `erased_text`. The database refuses words without their person in these tables, and a correction that is
taken back leaves every other place at once (`corrections.undo`), so a search by person finds all of their text.
Answers made from a person's corrections, and answers of experts that were shown those, lose their text too and are
withdrawn, so that no lesson trains on them again. Applied updates that learned from them cannot be changed here; the
report names them and their versions.

The database counts, hashes and deletes the texts; only ids come here, and go back as one parameter.
"""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Integer,
    Select,
    Subquery,
    Text,
    and_,
    cast,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    text,
    tuple_,
    union,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import InstrumentedAttribute, Session

from services.contracts.answers import AnswerStatus
from services.contracts.corrections import CorrectionStatus
from services.contracts.lessons import LessonStatus
from services.contracts.persons import Erasure, Role, ShapedUpdate
from services.contracts.updates import UpdateStatus
from services.store.core import audit
from services.store.core.id_lists import listed
from services.store.core.transaction import take_long
from services.store.corrections import shown
from services.store.ledger import fallbacks, updates
from services.store.loop import contexts
from services.store.people import keys, passwords, persons
from services.store.tables.base import LineageRow
from services.store.tables.corrections import CorrectionRow, DraftRow, EffectRow
from services.store.tables.housekeeping import IdempotencyRow
from services.store.tables.ledger import (
    LessonAnswerRow,
    LessonRow,
    PolicyVersionRow,
    TeacherChoicesRow,
    UpdateLessonRow,
    UpdateRow,
)
from services.store.tables.loop import AnswerRow, ConsultationRow, GroupRow, RolloutRow
from services.store.tables.people import ApiKeyRow, ErasedTextRow, ErasureRow, LoginLinkRow, LoginSessionRow, PersonRow

WRITTEN: Final = (
    ("correction", CorrectionRow, (CorrectionRow.text, CorrectionRow.comment, CorrectionRow.skip_reason)),
)
"""Tables with an `id` and a `person_id`, and their columns of text that the person wrote; nullable ones."""

DRAFTED: Final = (DraftRow.text, DraftRow.comment)
"""The text columns of a draft, which is deleted as a whole."""

MADE: Final = (AnswerRow.solution, AnswerRow.precedents, AnswerRow.feedback, AnswerRow.evidence)
"""The text columns of an answer made from a correction."""

UNUSED: Final = (LessonStatus.READY.value, LessonStatus.CLAIMED.value)
REASON: Final = "a person's text was erased"


def preview(session: Session, person_id: UUID) -> Erasure:
    """A preview of erasing this person's text; for an erased person, the report.

    Errors: PersonNotFound (404).
    """
    person = persons.get(session, person_id)
    if person.erased_at is not None:
        return _stored(session, person_id)
    made = _find_made(session, person_id)
    piece = _pieces(person_id, made).c
    found = select(piece.noun, func.length(piece.words).label("num_chars")).subquery()
    num_lessons = session.scalar(select(func.count()).select_from(emptied(made).subquery())) or 0
    return _report(session, person_id, found, made, num_lessons, is_done=False)


def erase(session: Session, person_id: UUID) -> Erasure:
    """Erase a person's text, name, keys, sessions and password; repeating it has no effect.

    Trainers wait meanwhile, and updates that had begun are abandoned: they may have read the text.

    Errors: PersonNotFound (404), LastOwner (409).
    """
    person = persons.get(session, person_id)
    keys.lock_owners(session)
    session.refresh(person, with_for_update=True)
    if person.erased_at is not None:
        return _stored(session, person_id)
    take_long(session)  # a year's work takes longer than a page may
    _lock(session, person_id)
    made = _find_made(session, person_id)
    row = ErasureRow(person_id=person_id, report={})
    session.add(row)
    session.flush()
    _keep_hashes(session, row.id, person_id, made)
    _take_out(session, person_id, made)
    session.execute(
        text("LOCK TABLE lesson IN SHARE ROW EXCLUSIVE MODE")
    )  # last: no lesson is claimed or settled meanwhile
    _begin_again(session, person_id)
    no_longer = session.scalars(emptied(made)).all()
    session.execute(
        update(LessonRow)
        .where(LessonRow.id.in_(listed(no_longer)))
        .values(status=LessonStatus.WITHDRAWN.value, reason=REASON, owner=None, lease_until=None)
        .execution_options(synchronize_session=False)
    )
    forget_teachers(session, made)
    kept = select(ErasedTextRow.noun, ErasedTextRow.num_chars).where(ErasedTextRow.erasure_id == row.id).subquery()
    report = _report(session, person_id, kept, made, len(no_longer), is_done=True)
    row.report = report.model_dump(mode="json")
    _forget_person(session, person)
    return report


def _stored(session: Session, person_id: UUID) -> Erasure:
    row = session.scalars(select(ErasureRow).where(ErasureRow.person_id == person_id)).one()
    return Erasure.model_validate(row.report)


def _lock(session: Session, person_id: UUID) -> None:
    """Lock rollouts first, then corrections, as everywhere: neither is answered or shown until this is committed."""
    mine = CorrectionRow.person_id == person_id
    rollouts = select(CorrectionRow.rollout_id).where(mine)
    session.execute(select(RolloutRow.id).where(RolloutRow.id.in_(rollouts)).order_by(RolloutRow.id).with_for_update())
    session.execute(select(CorrectionRow.id).where(mine).order_by(CorrectionRow.id).with_for_update())


def _begin_again(session: Session, person_id: UUID) -> None:
    """Abandon the updates that have begun in the lineages the person wrote for."""
    lineages = select(CorrectionRow.lineage_id).where(CorrectionRow.person_id == person_id)
    begun = session.scalars(
        select(UpdateRow.id).where(UpdateRow.lineage_id.in_(lineages), UpdateRow.status == UpdateStatus.STARTED.value)
    ).all()
    for update_id in begun:
        updates.abandon(session, update_id, REASON)


def _corrections_of(person_id: UUID) -> Select[UUID]:
    return select(CorrectionRow.id).where(CorrectionRow.person_id == person_id)


def _rollouts_of(person_id: UUID) -> Select[UUID]:
    """Those the person decided about."""
    return select(CorrectionRow.rollout_id).where(
        CorrectionRow.person_id == person_id, CorrectionRow.verdict.is_not(None)
    )


def _find_made(session: Session, person_id: UUID) -> Sequence[UUID]:
    """The answers made of the person's corrections, and those of experts that were shown them."""
    of_person = (
        select(AnswerRow.id)
        .join(CorrectionRow, CorrectionRow.consultation_id == AnswerRow.consultation_id)
        .where(
            AnswerRow.rollout_id == CorrectionRow.rollout_id,  # for which there is an index
            CorrectionRow.person_id == person_id,
            CorrectionRow.verdict.is_not(None),
        )
    )
    of_shown = (
        select(AnswerRow.id)
        .join(ConsultationRow, ConsultationRow.id == AnswerRow.consultation_id)
        .where(AnswerRow.rollout_id == ConsultationRow.rollout_id, shown.was_shown(_rollouts_of(person_id)))
    )
    return session.scalars(union(of_person, of_shown)).all()


def _pieces(person_id: UUID, made: Sequence[UUID]) -> Subquery:
    """Every piece of text that goes: the noun it is kept in, its id, the field, and the words; JSON as Postgres writes
    it."""
    found = [
        _piece(noun, table.id, column, table.person_id == person_id)
        for noun, table, columns in WRITTEN
        for column in columns
    ]
    drafted = DraftRow.person_id == person_id
    found += [_piece("correction_draft", DraftRow.correction_id, column, drafted) for column in DRAFTED]
    found.append(_piece("correction_draft", DraftRow.correction_id, DraftRow.spans, drafted, DraftRow.spans != []))
    groups = contexts.made_of(listed(made))
    drawn = contexts.shown_in(groups)
    answered = AnswerRow.id.in_(listed(made)) | AnswerRow.rollout_id.in_(drawn)
    found += [_piece("answer", AnswerRow.id, column, answered) for column in MADE]
    found.append(_piece("rollout_group", GroupRow.id, GroupRow.context, GroupRow.id.in_(groups)))
    found.append(_piece("rollout", RolloutRow.id, RolloutRow.text, RolloutRow.id.in_(drawn)))
    measured = EffectRow.correction_id.in_(_corrections_of(person_id))
    found.append(_piece("correction_effect", EffectRow.id, EffectRow.answer, measured))
    return union_all(*found).subquery("piece")


def _piece(
    noun: str, noun_id: InstrumentedAttribute[UUID], column: InstrumentedAttribute[Any], *where: ColumnElement[bool]
) -> Select[str, UUID, str, str]:
    words = cast(column, Text)
    return select(
        literal(noun).label("noun"), noun_id.label("noun_id"), literal(column.key).label("field"), words.label("words")
    ).where(words != "", *where)


def _keep_hashes(session: Session, erasure_id: UUID, person_id: UUID, made: Sequence[UUID]) -> None:
    piece = _pieces(person_id, made).c
    sha256 = func.encode(func.sha256(func.convert_to(piece.words, "UTF8")), "hex")
    hashes = select(literal(erasure_id), piece.noun, piece.noun_id, piece.field, sha256, func.length(piece.words))
    columns = ["erasure_id", "noun", "noun_id", "field", "sha256", "num_chars"]
    session.execute(insert(ErasedTextRow).from_select(columns, hashes))


def emptied(made: Sequence[UUID]) -> Select[UUID]:
    """The unused lessons that are left without an answer, and those of what teachers drew that were shown one of
    these."""
    touched = select(LessonAnswerRow.lesson_id).where(LessonAnswerRow.answer_id.in_(listed(made)))
    gone = listed(made).subquery("gone")
    is_gone = exists().where(gone.c.id == AnswerRow.id)
    left = exists().where(
        LessonAnswerRow.lesson_id == LessonRow.id,
        AnswerRow.id == LessonAnswerRow.answer_id,
        AnswerRow.status == AnswerStatus.CURRENT.value,
        ~is_gone,
    )
    drawn = contexts.shown_in(contexts.made_of(listed(made)))
    is_emptied = LessonRow.id.in_(touched) & ~left
    return select(LessonRow.id).where(LessonRow.status.in_(UNUSED), is_emptied | LessonRow.rollout_id.in_(drawn))


def _report(
    session: Session, person_id: UUID, texts: Subquery, made: Sequence[UUID], num_lessons: int, *, is_done: bool
) -> Erasure:
    """texts: a row with `noun` and `num_chars` for each piece."""
    num, chars = func.count(), func.sum(texts.c.num_chars)
    counts = session.execute(select(texts.c.noun, num, chars).group_by(texts.c.noun).order_by(texts.c.noun)).all()
    shaped = _updates_shaped(session, made)
    return Erasure(
        person_id=person_id,
        is_done=is_done,
        texts={noun: num_texts for noun, num_texts, _ in counts},
        chars=sum(num_chars for *_, num_chars in counts),
        answers=len(made),
        lessons=num_lessons,
        updates=[ShapedUpdate(lineage=name, number=number) for _, name, number in shaped],
        policy_versions=_versions_carrying(session, shaped),
    )


def _learned_from(made: Sequence[UUID]) -> Select[UUID, UUID]:
    """Update and lesson of what was trained with a term made from one of these answers, of whichever task they are
    about; a term on what a teacher drew was made from what it was shown, too."""
    gone = listed(made).subquery("gone")
    named = func.jsonb_build_array(
        func.jsonb_build_object("answers", func.jsonb_build_array(cast(gone.c.id, Text)), type_=JSONB), type_=JSONB
    )
    keys = UpdateLessonRow.update_id, UpdateLessonRow.lesson_id
    return select(*keys).join(gone, UpdateLessonRow.terms.contains(named)).distinct()


def _updates_shaped(session: Session, made: Sequence[UUID]) -> list[tuple[UUID, str, int]]:
    """Lineage (id, name) and number of the applied updates that learned from one of these answers."""
    learned = _learned_from(made).subquery()
    rows = session.execute(
        select(LineageRow.id, LineageRow.name, UpdateRow.number)
        .distinct()
        .select_from(UpdateLessonRow)
        .join(UpdateRow, UpdateRow.id == UpdateLessonRow.update_id)
        .join(LineageRow, LineageRow.id == UpdateRow.lineage_id)
        .join(
            learned,
            and_(
                learned.c.update_id == UpdateLessonRow.update_id,
                learned.c.lesson_id == UpdateLessonRow.lesson_id,
            ),
        )
        .where(UpdateLessonRow.status == UpdateStatus.APPLIED.value)
    )
    return sorted((lineage, name, number) for lineage, name, number in rows)


def _versions_carrying(session: Session, shaped: Sequence[tuple[UUID, str, int]]) -> list[str]:
    """Every policy version made after one of these updates, unless training left the update behind before."""
    numbers: dict[UUID, list[int]] = {}
    for lineage, _, number in shaped:
        numbers.setdefault(lineage, []).append(number)
    names: list[str] = []
    for lineage, shaping in numbers.items():
        each = func.unnest(literal(shaping, ARRAY(Integer))).column_valued("shaping")
        carrying = select(PolicyVersionRow.name, PolicyVersionRow.number).where(
            PolicyVersionRow.lineage_id == lineage,
            fallbacks.carries(PolicyVersionRow.update_number, each, lineage),
        )
        names += session.scalars(carrying.distinct().order_by(PolicyVersionRow.number))
    return names


def _take_out(session: Session, person_id: UUID, made: Sequence[UUID]) -> None:
    """Delete the texts, and release the items the person holds."""
    shown.withdraw_answers(session, listed(made))
    shown.take_out(session, _rollouts_of(person_id), REASON)
    shown.forget_effects(session, _corrections_of(person_id), REASON)
    for _, table, columns in WRITTEN:
        session.execute(
            update(table)
            .where(table.person_id == person_id)
            .values({column.key: None for column in columns})
            .execution_options(synchronize_session=False)
        )
    session.execute(
        delete(DraftRow).where(DraftRow.person_id == person_id).execution_options(synchronize_session=False)
    )
    session.execute(
        update(CorrectionRow)
        .where(CorrectionRow.person_id == person_id, CorrectionRow.status == CorrectionStatus.CLAIMED.value)
        .values(status=CorrectionStatus.OPEN.value, person_id=None, lease_until=None)
        .execution_options(synchronize_session=False)
    )


def forget_teachers(session: Session, made: Sequence[UUID]) -> None:
    """The tokens preferred by a teacher that was shown the text repeat it, token by token."""
    session.execute(
        delete(TeacherChoicesRow)
        .where(tuple_(TeacherChoicesRow.update_id, TeacherChoicesRow.lesson_id).in_(_learned_from(made)))
        .execution_options(synchronize_session=False)
    )


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
