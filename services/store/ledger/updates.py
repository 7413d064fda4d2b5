"""Updates: the ledger of optimizer steps. One commit makes a step count, together with every lesson it used.

An update is `started` in the transaction that claims its lessons and `applied` in the one that marks them used. Both
check the owner, so a trainer that lost its lease changes no row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from services.contracts.base import JsonObject
from services.contracts.lessons import LessonStatus
from services.contracts.updates import TermRecord, Update, UpdateDetail, UpdateLesson, UpdateStatus
from services.runtime.errors import Conflict, NotFound
from services.store.core.id_lists import listed
from services.store.ledger import distributions
from services.store.ledger.distributions import TopK
from services.store.tables.ledger import LessonRow, TeacherChoicesRow, UpdateLessonRow, UpdateRow
from services.store.tables.loop import GroupRow, RolloutRow


class UpdateNotFound(NotFound):
    """No update of that number or id in this lineage."""


class LeaseLost(Conflict):
    """The update is no longer its owner's, or one of its lessons was taken away: it must be discarded."""


@dataclass(frozen=True)
class Contribution:
    """The part of one lesson in an update. invalid: why it could not be used; it then has no part.

    token_costs: nats a token, [T], 0 where no expert spoke. choices: the tokens our own teacher prefers there.
    """

    lesson_id: UUID
    baseline_group: str | None = None
    terms: tuple[TermRecord, ...] = ()
    future_nonzero: bool = False
    staleness: int | None = None
    token_costs: tuple[float, ...] | None = None
    choices: TopK | None = None
    invalid: str | None = None


def start(
    session: Session,
    lineage_id: UUID,
    owner: UUID,
    *,
    objective: str,
    settings: JsonObject,
    parent_sha256: str | None,
    fell_back_to: str | None = None,
    batch_sha256: str,
    lesson_ids: Sequence[UUID],
) -> UpdateRow:
    """Open the next update of the lineage over lessons the owner has claimed in this transaction.

    fell_back_to: the version whose checkpoint the parent is, where that is not the update before (`fallbacks`).
    """
    row = UpdateRow(
        lineage_id=lineage_id,
        number=last_number(session, lineage_id) + 1,
        owner=owner,
        objective=objective,
        settings=settings,
        metrics={},
        parent_sha256=parent_sha256,
        fell_back_to=fell_back_to,
        batch_sha256=batch_sha256,
    )
    session.add(row)
    session.flush()
    session.add_all(UpdateLessonRow(update_id=row.id, lesson_id=lesson_id, terms=[]) for lesson_id in lesson_ids)
    session.flush()
    return row


def apply(
    session: Session,
    update_id: UUID,
    owner: UUID,
    *,
    checkpoint_sha256: str,
    metrics: JsonObject,
    contributions: Sequence[Contribution],
) -> None:
    """Make the step count: the update is applied and its lessons are used (or invalid), all or none.

    Repeating it with the same checkpoint has no effect, so a commit whose outcome is unknown may be repeated.
    Errors: LeaseLost (409).
    """
    row = _lock(session, update_id, owner)
    if row.status == UpdateStatus.APPLIED.value and row.checkpoint_sha256 == checkpoint_sha256:
        return
    _require_started(row)
    _settle_all(session, contributions, owner, LessonStatus.USED, reason=None)
    for one in contributions:
        _record(session, update_id, one)
    row.status = UpdateStatus.APPLIED.value
    row.checkpoint_sha256 = checkpoint_sha256
    row.metrics = metrics
    row.applied_at = func.now()
    session.flush()


def set_aside(
    session: Session,
    update_id: UUID,
    owner: UUID,
    *,
    reason: str,
    metrics: JsonObject,
    contributions: Sequence[Contribution],
) -> None:
    """Abandon an update that did not train: its lessons become invalid where they say so and else are set aside, with
    the reason, so that they are not claimed again. All or none; repeating it has no effect.

    Errors: LeaseLost (409).
    """
    row = _lock(session, update_id, owner)
    if row.status == UpdateStatus.ABANDONED.value and row.reason == reason:
        return
    _require_started(row)
    _settle_all(session, contributions, owner, LessonStatus.SET_ASIDE, reason)
    for one in contributions:
        if one.invalid is not None:
            _record(session, update_id, one)
    session.execute(
        update(UpdateLessonRow)
        .where(UpdateLessonRow.update_id == update_id)
        .values(status=UpdateStatus.ABANDONED.value)
    )
    row.status = UpdateStatus.ABANDONED.value
    row.reason = reason
    row.metrics = metrics
    session.flush()


def _lock(session: Session, update_id: UUID, owner: UUID) -> UpdateRow:
    row = session.get(UpdateRow, update_id, with_for_update=True, populate_existing=True)
    if row is None or row.owner != owner:
        raise LeaseLost(f"update {update_id} is held by another trainer")
    return row


def _require_started(row: UpdateRow) -> None:
    if row.status != UpdateStatus.STARTED.value:
        raise LeaseLost(f"update {row.number} was {row.status}: {row.reason}")


def _settle_all(
    session: Session, contributions: Sequence[Contribution], owner: UUID, status: LessonStatus, reason: str | None
) -> None:
    """`status` for the lessons that mean something, `invalid` for the others."""
    meaningful = [one.lesson_id for one in contributions if one.invalid is None]
    invalid = [one.lesson_id for one in contributions if one.invalid is not None]
    _settle(session, meaningful, owner, status, reason)
    _settle(session, invalid, owner, LessonStatus.INVALID, None)


def _settle(session: Session, ids: Sequence[UUID], owner: UUID, status: LessonStatus, reason: str | None) -> None:
    settled = session.scalars(
        update(LessonRow)
        .where(LessonRow.id.in_(ids), LessonRow.owner == owner, LessonRow.status == LessonStatus.CLAIMED.value)
        .values(status=status.value, reason=reason, owner=None, lease_until=None)
        .returning(LessonRow.id)
    ).all()
    if len(settled) != len(ids):
        raise LeaseLost(f"{len(ids) - len(settled)} of the update's lessons are no longer held by this trainer")


def _record(session: Session, update_id: UUID, one: Contribution) -> None:
    row = session.get_one(UpdateLessonRow, (update_id, one.lesson_id))
    if one.invalid is not None:
        session.get_one(LessonRow, one.lesson_id, populate_existing=True).reason = one.invalid
        row.status = UpdateStatus.ABANDONED.value
        return
    row.status = UpdateStatus.APPLIED.value
    row.baseline_group = one.baseline_group
    row.terms = [term.model_dump(mode="json") for term in one.terms]
    row.future_nonzero = one.future_nonzero
    row.staleness = one.staleness
    row.token_costs = None if one.token_costs is None else list(one.token_costs)
    if one.choices is not None:
        num_rows, width = one.choices.token_ids.shape
        session.add(
            TeacherChoicesRow(
                update_id=update_id,
                lesson_id=one.lesson_id,
                num_rows=num_rows,
                width=width,
                packed=distributions.pack_top_k(one.choices),
            )
        )


def abandon(session: Session, update_id: UUID, reason: str) -> bool:
    """Give up a started update and release its lessons; False when it was not `started` any more."""
    row = session.get(UpdateRow, update_id, with_for_update=True, populate_existing=True)
    if row is None or row.status != UpdateStatus.STARTED.value:
        return False
    row.status = UpdateStatus.ABANDONED.value
    row.reason = reason
    of_update = select(UpdateLessonRow.lesson_id).where(UpdateLessonRow.update_id == update_id)
    session.execute(
        update(LessonRow)
        .where(
            LessonRow.id.in_(of_update), LessonRow.owner == row.owner, LessonRow.status == LessonStatus.CLAIMED.value
        )
        .values(status=LessonStatus.READY.value, owner=None, lease_until=None)
    )
    session.execute(
        update(UpdateLessonRow)
        .where(UpdateLessonRow.update_id == update_id)
        .values(status=UpdateStatus.ABANDONED.value)
    )
    session.flush()
    return True


def abandon_started(session: Session, lineage_id: UUID, reason: str) -> int:
    """Give up every started update of the lineage: for a trainer that holds the lineage's lock, so all of them are of
    dead owners. How many."""
    started = session.scalars(
        select(UpdateRow.id).where(UpdateRow.lineage_id == lineage_id, UpdateRow.status == UpdateStatus.STARTED.value)
    ).all()
    return sum(abandon(session, update_id, reason) for update_id in started)


def last_applied(session: Session, lineage_id: UUID) -> UpdateRow | None:
    """The update the weights continue from."""
    return session.scalar(
        select(UpdateRow)
        .where(UpdateRow.lineage_id == lineage_id, UpdateRow.status == UpdateStatus.APPLIED.value)
        .order_by(UpdateRow.number.desc())
        .limit(1)
    )


def applied(session: Session, lineage_id: UUID, number: int) -> UpdateRow | None:
    """The applied update of that number; None when there is none."""
    return session.scalar(
        select(UpdateRow).where(
            UpdateRow.lineage_id == lineage_id,
            UpdateRow.number == number,
            UpdateRow.status == UpdateStatus.APPLIED.value,
        )
    )


def last_number(session: Session, lineage_id: UUID) -> int:
    """The number of the last applied update; 0 before the first."""
    row = last_applied(session, lineage_id)
    return 0 if row is None else row.number


def get(session: Session, lineage_id: UUID, number: int) -> UpdateRow:
    """The update of that number that counts, or the latest try at it. Errors: UpdateNotFound (404)."""
    row = session.scalar(
        select(UpdateRow)
        .where(UpdateRow.lineage_id == lineage_id, UpdateRow.number == number)
        .order_by(UpdateRow.status.in_([UpdateStatus.APPLIED.value, UpdateStatus.STARTED.value]).desc())
        .order_by(UpdateRow.id.desc())
        .limit(1)
    )
    if row is None:
        raise UpdateNotFound(f"no update {number}")
    return row


def newest(session: Session, lineage_id: UUID, *, before: UUID | None, limit: int) -> Sequence[UpdateRow]:
    """Updates, newest first, from before the given id."""
    query = select(UpdateRow).where(UpdateRow.lineage_id == lineage_id)
    if before is not None:
        query = query.where(UpdateRow.id < before)
    return session.scalars(query.order_by(UpdateRow.id.desc()).limit(limit)).all()


def numbers_using(session: Session, answer_ids: Sequence[UUID]) -> dict[UUID, list[int]]:
    """The numbers of the applied updates with a term made from each of these answers; of no update, no entry."""
    wanted = listed(answer_ids).subquery("wanted")
    named = func.jsonb_build_array(func.jsonb_build_object("answers", func.jsonb_build_array(wanted.c.id)))
    rows = session.execute(
        select(wanted.c.id, UpdateRow.number)
        .distinct()
        .select_from(wanted)
        .join(UpdateLessonRow, UpdateLessonRow.terms.op("@>")(named))  # by their index, answer by answer
        .join(UpdateRow, UpdateRow.id == UpdateLessonRow.update_id)
        .where(UpdateLessonRow.status == UpdateStatus.APPLIED.value)
        .order_by(UpdateRow.number)
    )
    found: dict[UUID, list[int]] = {}
    for answer_id, number in rows:
        found.setdefault(answer_id, []).append(number)
    return found


def view(row: UpdateRow) -> Update:
    """The contract of a row."""
    return Update.model_validate(row)


def detail(session: Session, row: UpdateRow) -> UpdateDetail:
    """The update with the part of each lesson."""
    rows = session.execute(
        select(UpdateLessonRow, LessonRow.rollout_id, LessonRow.group_id, RolloutRow.shown, GroupRow.context["source"])
        .join(LessonRow, LessonRow.id == UpdateLessonRow.lesson_id)
        .join(RolloutRow, RolloutRow.id == LessonRow.rollout_id)
        .join(GroupRow, GroupRow.id == LessonRow.group_id)
        .where(UpdateLessonRow.update_id == row.id)
        .order_by(LessonRow.group_id, LessonRow.id)
    )
    used = [
        UpdateLesson(
            lesson_id=one.lesson_id,
            rollout_id=rollout_id,
            group_id=group_id,
            baseline_group=one.baseline_group,
            terms=[TermRecord.model_validate(term) for term in one.terms],
            future_nonzero=one.future_nonzero,
            staleness=one.staleness,
            shown_after=source if shown else None,
        )
        for one, rollout_id, group_id, shown, source in rows
    ]
    return UpdateDetail(**view(row).model_dump(), lessons=used)
