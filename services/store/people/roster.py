"""Everybody at a glance, for the page that lists them."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.contracts.base import Page
from services.contracts.persons import PersonLine, Role
from services.store.core.pages import newest_first
from services.store.people.keys import is_live
from services.store.tables.people import ApiKeyRow, LoginSessionRow, PasswordRow, PersonRow


def read(session: Session, *, cursor: str | None, limit: int) -> Page[PersonLine]:
    """Persons and services with their keys and sessions, newest first. Errors: BadCursor."""
    rows, following = newest_first(session, select(PersonRow), PersonRow.id, cursor, limit)
    ids = [row.id for row in rows]
    held = select(ApiKeyRow.person_id, func.count(), func.max(ApiKeyRow.last_used_at)).group_by(ApiKeyRow.person_id)
    num_keys, used = {}, {}
    for person_id, num, used_at in session.execute(held.where(ApiKeyRow.person_id.in_(ids), is_live())):
        num_keys[person_id], used[person_id] = num, used_at
    with_password = set(session.scalars(select(PasswordRow.person_id).where(PasswordRow.person_id.in_(ids))))
    seen_last = select(LoginSessionRow.person_id, func.max(LoginSessionRow.seen_at)).group_by(LoginSessionRow.person_id)
    seen = dict(session.execute(seen_last.where(LoginSessionRow.person_id.in_(ids))).all())
    lines = [
        PersonLine(
            id=row.id,
            name=row.name,
            role=Role(row.role),
            created_at=row.created_at,
            erased_at=row.erased_at,
            num_keys=num_keys.get(row.id, 0),
            has_password=row.id in with_password,
            key_used_at=used.get(row.id),
            seen_at=seen.get(row.id),
        )
        for row in rows
    ]
    return Page[PersonLine](items=lines, next_cursor=following)
