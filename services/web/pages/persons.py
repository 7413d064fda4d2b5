"""Persons and services, for owners: accounts, keys, sessions, and erasing text."""

from typing import Annotated, Final
from uuid import UUID

from pydantic import Field
from starlette.responses import Response

from services.acts import persons as acts
from services.acts import sessions
from services.api.deps import StoreDep
from services.contracts.base import Contract, Name
from services.contracts.persons import RIGHTS, PasswordLinkCreate, Person, PersonCreate, Right, Role, RoleChange
from services.runtime.errors import InvalidInput
from services.store.people import erasing, keys, logins, passwords, persons, roster
from services.web.forms import build_pages, form_of
from services.web.lists import RowsDep
from services.web.pages.account import MAX_SHOWN
from services.web.visitors import CallDep, VisitorDep, go_to, needs, page

router = build_pages()

ROLES: Final = {
    Role.ANNOTATOR: "reads, and corrects answers",
    Role.OPERATOR: "also runs experts, the loop and evaluations",
    Role.OWNER: "may do everything",
    Role.SERVICE: "a program: reads, and sends tasks and rollouts",
}


class PersonForm(Contract):
    """The form of a new person or service."""

    name: Name
    role: Role


class LinkForm(Contract):
    """Whether the current password ends at once."""

    reset: bool = False


class EraseForm(Contract):
    """The person's name, typed as a confirmation."""

    name: Annotated[str, Field(max_length=200)]


class NameNotTyped(InvalidInput):
    """The typed name is not the person's; no text was erased."""

    title = "Not erased"
    hint = "Type the name exactly to erase this person."


@router.get("/persons", dependencies=[needs(Right.ADMINISTER)])
def show_persons(visitor: VisitorDep, store: StoreDep, paging: RowsDep) -> Response:
    """All persons and services, newest first. Errors: BadCursor (422)."""
    with store.reading() as session:
        found = roster.read(session, cursor=paging.cursor, limit=paging.limit)
    return page(visitor, "persons/list.html", found=found, roles=ROLES)


@router.post("/persons", dependencies=[needs(Right.ADMINISTER)])
def add_person(visitor: VisitorDep, call: CallDep, form: Annotated[PersonForm, form_of(PersonForm)]) -> Response:
    """Add a person or service; show their key and a person's link to set a password. Errors: NameTaken (409)."""
    made = acts.add(call, PersonCreate(name=form.name, role=form.role))
    link = None if form.role is Role.SERVICE else acts.link_password(call, made.id, PasswordLinkCreate())
    return page(visitor, "persons/made.html", person=made, api_key=made.api_key, link=link)


@router.get("/persons/{person_id}", dependencies=[needs(Right.ADMINISTER)])
def show_person(person_id: UUID, visitor: VisitorDep, store: StoreDep) -> Response:
    """One person, their keys and sessions. Errors: PersonNotFound (404)."""
    with store.reading() as session:
        person = Person.model_validate(persons.get(session, person_id))
        password = passwords.find(session, person_id)
        changed_at = None if password is None else password.changed_at
        live = logins.list_live(session, person_id, cursor=None, limit=MAX_SHOWN)
        held = keys.list_of(session, person_id, cursor=None, limit=MAX_SHOWN)
    return page(
        visitor,
        "persons/one.html",
        person=person,
        has_password=password is not None,
        changed_at=changed_at,
        sessions=live.items,
        keys=held.items,
        scopes=sorted(RIGHTS[person.role]),
        roles={role: said for role, said in ROLES.items() if role is not Role.SERVICE},
        person_id=person.id,
    )


@router.get("/persons/{person_id}/erasure", dependencies=[needs(Right.ADMINISTER)])
def show_erasure(person_id: UUID, visitor: VisitorDep, store: StoreDep) -> Response:
    """The texts that erasing a person would remove, or removed; a page of its own, as counting may take a while.

    Errors: PersonNotFound (404).
    """
    with store.reading() as session:
        person = Person.model_validate(persons.get(session, person_id))
        erasure = erasing.preview(session, person_id)
    return page(visitor, "persons/erasure.html", person=person, erasure=erasure)


@router.post("/persons/{person_id}/role", dependencies=[needs(Right.ADMINISTER)])
def change_role(
    person_id: UUID, visitor: VisitorDep, call: CallDep, form: Annotated[RoleChange, form_of(RoleChange)]
) -> Response:
    """Change the role of a person. Errors: PersonNotFound (404), PersonErased, ServiceStays, LastOwner (409)."""
    name = acts.change_role(call, person_id, form.role).name
    return go_to(visitor, f"/persons/{person_id}", notice=f"{name} is {form.role.value} now.")


@router.post("/persons/{person_id}/password-link", dependencies=[needs(Right.ADMINISTER)])
def link_password(
    person_id: UUID, visitor: VisitorDep, call: CallDep, store: StoreDep, form: Annotated[LinkForm, form_of(LinkForm)]
) -> Response:
    """Make a link to set a password and show it once.

    Errors: PersonNotFound (404), PersonErased (409), NoPasswordForServices (422).
    """
    link = acts.link_password(call, person_id, PasswordLinkCreate(reset=form.reset))
    with store.reading() as session:
        person = Person.model_validate(persons.get(session, person_id))
    return page(visitor, "persons/made.html", person=person, api_key=None, link=link)


@router.post("/persons/{person_id}/end-sessions")
def end_sessions(person_id: UUID, visitor: VisitorDep, call: CallDep) -> Response:
    """End every session of a person. Errors: PersonNotFound (404)."""
    num = sessions.end_all(call, person_id).num_ended
    return go_to(visitor, f"/persons/{person_id}", notice=f"Sessions ended: {num}.")


@router.post("/persons/{person_id}/erase", dependencies=[needs(Right.ADMINISTER)])
def erase_person(
    person_id: UUID, visitor: VisitorDep, call: CallDep, store: StoreDep, form: Annotated[EraseForm, form_of(EraseForm)]
) -> Response:
    """Erase a person's text, name and credentials permanently.

    Errors: PersonNotFound (404), LastOwner (409), NameNotTyped (422).
    """
    with store.reading() as session:
        if persons.get(session, person_id).name != form.name:
            raise NameNotTyped("the typed name does not match")
    acts.erase(call, person_id)
    return go_to(visitor, f"/persons/{person_id}/erasure", notice="This person's texts are erased.")
