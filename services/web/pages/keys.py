"""API keys: making, rotating and revoking them, one's own from the account, everybody's from the person's page."""

from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

from pydantic import BeforeValidator, Field
from sqlalchemy.orm import Session
from starlette.responses import Response

from services.api.deps import StoreDep
from services.api.routes import keys as routes
from services.contracts.base import Contract, Name
from services.contracts.persons import KeyCreate, KeyRotate, Person, Right
from services.store.core import audit
from services.store.people import keys, persons
from services.web.forms import build_pages, form_of
from services.web.visitors import Visitor, VisitorDep, go_to, page

router = build_pages()

DAY_SECONDS = 86_400


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


class KeyForm(Contract):
    """A key to be: for whom, its name, what it may, how many days."""

    person_id: UUID
    name: Name
    scopes: Annotated[list[Right], BeforeValidator(_as_list), Field(min_length=1)]
    days: Annotated[int, Field(ge=1, le=3650)] | None = None


class RotateForm(Contract):
    """How many days the old key goes on."""

    grace_days: Annotated[int, Field(ge=0, le=30)] = 0


@router.post("/keys")
def add_key(visitor: VisitorDep, store: StoreDep, form: Annotated[KeyForm, form_of(KeyForm)]) -> Response:
    """Make one more key and show it, this once.

    Errors: NotAllowed (403), PersonNotFound (404), PersonErased (409), ScopeNotInRole (422).
    """
    expires_at = None if form.days is None else datetime.now(UTC) + timedelta(days=form.days)
    wanted = KeyCreate(person_id=form.person_id, name=form.name, scopes=form.scopes, expires_at=expires_at)
    with store.transaction() as session:
        made = routes.add(session, visitor.caller, wanted)
        audit.record(session, visitor.actor, "keys.add", "key", made.id, {"person_id": str(made.person_id)})
        person = _read_person(session, made.person_id)
    return page(visitor, "key-made.html", key=made, person=person, back=back_to(visitor, person.id))


@router.post("/keys/{key_id}/rotate")
def rotate_key(
    key_id: UUID, visitor: VisitorDep, store: StoreDep, form: Annotated[RotateForm, form_of(RotateForm)]
) -> Response:
    """Put a new key in place of this one and show it, this once.

    Errors: NotAllowed (403), KeyNotFound (404), KeyOver (409).
    """
    how = KeyRotate(grace_seconds=form.grace_days * DAY_SECONDS)
    with store.transaction() as session:
        made = routes.rotate(session, visitor.caller, key_id, how)
        audit.record(session, visitor.actor, "keys.rotate", "key", key_id, {"new_id": str(made.id)})
        person = _read_person(session, made.person_id)
    return page(visitor, "key-made.html", key=made, person=person, back=back_to(visitor, person.id))


@router.post("/keys/{key_id}/revoke")
def revoke_key(key_id: UUID, visitor: VisitorDep, store: StoreDep) -> Response:
    """Make a key work no more. Errors: NotAllowed (403), KeyNotFound (404), LastOwner (409)."""
    with store.transaction() as session:
        over = routes.revoke(session, visitor.caller, key_id)
        audit.record(session, visitor.actor, "keys.revoke", "key", key_id)
        is_own = keys.get(session, key_id).id == visitor.caller.key_id
    notice = f"The key {over.name} is revoked."
    return go_to(visitor, "/login" if is_own else back_to(visitor, over.person_id), notice=notice)


def back_to(visitor: Visitor, person_id: UUID) -> str:
    """The page a person's keys are on: one's own are on the account."""
    return "/account" if person_id == visitor.id else f"/persons/{person_id}"


def _read_person(session: Session, person_id: UUID) -> Person:
    return Person.model_validate(persons.get(session, person_id))
