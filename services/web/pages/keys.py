"""API keys: making, rotating and revoking them, your own on the account, another person's on their page."""

from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

from pydantic import BeforeValidator, Field
from starlette.responses import Response

from services.acts import keys as acts
from services.api.deps import StoreDep
from services.contracts.base import Contract, Name
from services.contracts.persons import KeyCreate, KeyCreated, KeyRotate, Person, Right
from services.store.core.transaction import Store
from services.store.people import persons
from services.web.forms import as_list, build_pages, form_of
from services.web.visitors import CallDep, Visitor, VisitorDep, go_to, page

router = build_pages()

DAY_SECONDS = 86_400


class KeyForm(Contract):
    """The form of a new key: its person, name, rights and days."""

    person_id: UUID
    name: Name
    scopes: Annotated[list[Right], BeforeValidator(as_list), Field(min_length=1)]
    days: Annotated[int, Field(ge=1, le=3650)] | None = None


class RotateForm(Contract):
    """How many days the old key keeps working."""

    grace_days: Annotated[int, Field(ge=0, le=30)] = 0


@router.post("/keys")
def add_key(
    visitor: VisitorDep, call: CallDep, store: StoreDep, form: Annotated[KeyForm, form_of(KeyForm)]
) -> Response:
    """Create another key and show it once.

    Errors: NotAllowed (403), PersonNotFound (404), PersonErased (409), ScopeNotInRole (422).
    """
    expires_at = None if form.days is None else datetime.now(UTC) + timedelta(days=form.days)
    wanted = KeyCreate(person_id=form.person_id, name=form.name, scopes=form.scopes, expires_at=expires_at)
    return _show_made(visitor, store, acts.add(call, wanted))


@router.post("/keys/{key_id}/rotate")
def rotate_key(
    key_id: UUID, visitor: VisitorDep, call: CallDep, store: StoreDep, form: Annotated[RotateForm, form_of(RotateForm)]
) -> Response:
    """Replace this key by a new one and show it once.

    Errors: NotAllowed (403), KeyNotFound (404), KeyOver (409).
    """
    made = acts.rotate(call, key_id, KeyRotate(grace_seconds=form.grace_days * DAY_SECONDS))
    return _show_made(visitor, store, made)


@router.post("/keys/{key_id}/revoke")
def revoke_key(key_id: UUID, visitor: VisitorDep, call: CallDep) -> Response:
    """Revoke a key. Errors: NotAllowed (403), KeyNotFound (404), LastOwner (409)."""
    over = acts.revoke(call, key_id)
    is_own = key_id == visitor.caller.key_id
    notice = f"The key {over.name} is revoked."
    return go_to(visitor, "/login" if is_own else back_to(visitor, over.person_id), notice=notice)


def back_to(visitor: Visitor, person_id: UUID) -> str:
    """The page with a person's keys: the account for the visitor's own."""
    return "/account" if person_id == visitor.id else f"/persons/{person_id}"


def _show_made(visitor: Visitor, store: Store, made: KeyCreated) -> Response:
    with store.reading() as session:
        person = Person.model_validate(persons.get(session, made.person_id))
    return page(visitor, "key-made.html", key=made, person=person, back=back_to(visitor, person.id))
