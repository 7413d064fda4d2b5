"""Persons and services, for owners: who there is, what they hold, and taking out what somebody wrote."""

from typing import Annotated, Final
from uuid import UUID

from pydantic import Field
from starlette.responses import Response

from services.api import people
from services.api.deps import StoreDep
from services.contracts.base import Contract, Name
from services.contracts.persons import RIGHTS, PasswordLinkCreate, Person, Right, Role, RoleChange
from services.runtime.errors import InvalidInput
from services.store.core import audit
from services.store.people import erasing, keys, logins, passwords, persons, roster
from services.web.forms import build_pages, form_of
from services.web.lists import RowsDep
from services.web.pages.account import MAX_KEYS
from services.web.visitors import VisitorDep, go_to, needs, page

router = build_pages()

ROLES: Final = {
    Role.ANNOTATOR: "reads, and corrects answers",
    Role.OPERATOR: "also runs experts, the loop and evaluations",
    Role.OWNER: "may do everything",
    Role.SERVICE: "a program: reads, and sends tasks and rollouts",
}


class PersonForm(Contract):
    """A person or service to be."""

    name: Name
    role: Role


class LinkForm(Contract):
    """Whether the password of now ends at once."""

    reset: bool = False


class EraseForm(Contract):
    """The person's name, typed as a confirmation."""

    name: Annotated[str, Field(max_length=200)]


class NameNotTyped(InvalidInput):
    """The name that was typed is not the person's; nothing was erased."""

    title = "Not erased"
    hint = "Type the name exactly to erase this person."


@router.get("/persons", dependencies=[needs(Right.ADMINISTER)])
def show_persons(visitor: VisitorDep, store: StoreDep, paging: RowsDep) -> Response:
    """Everybody, newest first. Errors: BadCursor (422)."""
    with store.reading() as session:
        found = roster.read(session, cursor=paging.cursor, limit=paging.limit)
    return page(visitor, "persons/list.html", found=found, roles=ROLES)


@router.post("/persons", dependencies=[needs(Right.ADMINISTER)])
def add_person(visitor: VisitorDep, store: StoreDep, form: Annotated[PersonForm, form_of(PersonForm)]) -> Response:
    """Add a person or service; show their key and a person's link to set a password. Errors: NameTaken (409)."""
    with store.transaction() as session:
        row, key = persons.create(session, form.name, form.role)
        is_service = form.role is Role.SERVICE
        link = None if is_service else people.link_password(session, row.id, PasswordLinkCreate())
        audit.record(session, visitor.actor, "persons.add", "person", row.id, {"role": form.role.value})
        person = Person.model_validate(row)
    return page(visitor, "persons/made.html", person=person, api_key=key, link=link)


@router.get("/persons/{person_id}", dependencies=[needs(Right.ADMINISTER)])
def show_person(person_id: UUID, visitor: VisitorDep, store: StoreDep) -> Response:
    """One person, their keys and sessions. Errors: PersonNotFound (404)."""
    with store.reading() as session:
        person = Person.model_validate(persons.get(session, person_id))
        password = passwords.find(session, person_id)
        changed_at = None if password is None else password.changed_at
        sessions = logins.list_live(session, person_id)
        held = keys.list_of(session, person_id, cursor=None, limit=MAX_KEYS)
    return page(
        visitor,
        "persons/one.html",
        person=person,
        has_password=password is not None,
        changed_at=changed_at,
        sessions=sessions,
        keys=held.items,
        scopes=sorted(RIGHTS[person.role]),
        roles={role: said for role, said in ROLES.items() if role is not Role.SERVICE},
        person_id=person.id,
    )


@router.get("/persons/{person_id}/erasure", dependencies=[needs(Right.ADMINISTER)])
def show_erasure(person_id: UUID, visitor: VisitorDep, store: StoreDep) -> Response:
    """What erasing a person's text would take out, or took out: counted here, for it may take a while.

    Errors: PersonNotFound (404).
    """
    with store.reading() as session:
        person = Person.model_validate(persons.get(session, person_id))
        erasure = erasing.preview(session, person_id)
    return page(visitor, "persons/erasure.html", person=person, erasure=erasure)


@router.post("/persons/{person_id}/role", dependencies=[needs(Right.ADMINISTER)])
def change_role(
    person_id: UUID, visitor: VisitorDep, store: StoreDep, form: Annotated[RoleChange, form_of(RoleChange)]
) -> Response:
    """Give a person another role. Errors: PersonNotFound (404), PersonErased, ServiceStays, LastOwner (409)."""
    with store.transaction() as session:
        name = persons.change_role(session, person_id, form.role).name
        audit.record(session, visitor.actor, "persons.role", "person", person_id, {"role": form.role.value})
    return go_to(visitor, f"/persons/{person_id}", notice=f"{name} is {form.role.value} now.")


@router.post("/persons/{person_id}/password-link", dependencies=[needs(Right.ADMINISTER)])
def link_password(
    person_id: UUID, visitor: VisitorDep, store: StoreDep, form: Annotated[LinkForm, form_of(LinkForm)]
) -> Response:
    """Make a link to set a password and show it, this once.

    Errors: PersonNotFound (404), PersonErased (409), NoPasswordForServices (422).
    """
    with store.transaction() as session:
        link = people.link_password(session, person_id, PasswordLinkCreate(reset=form.reset))
        detail = {"reset": form.reset}
        audit.record(session, visitor.actor, "persons.password-link", "person", person_id, dict(detail))
        person = Person.model_validate(persons.get(session, person_id))
    return page(visitor, "persons/made.html", person=person, api_key=None, link=link)


@router.post("/persons/{person_id}/end-sessions", dependencies=[needs(Right.ADMINISTER)])
def end_sessions(person_id: UUID, visitor: VisitorDep, store: StoreDep) -> Response:
    """End every session of a person. Errors: PersonNotFound (404)."""
    with store.transaction() as session:
        persons.get(session, person_id)
        num = logins.end_all(session, person_id)
        audit.record(session, visitor.actor, "sessions.end-all", "person", person_id, {"num": num})
    return go_to(visitor, f"/persons/{person_id}", notice=f"Sessions ended: {num}.")


@router.post("/persons/{person_id}/erase", dependencies=[needs(Right.ADMINISTER)])
def erase_person(
    person_id: UUID, visitor: VisitorDep, store: StoreDep, form: Annotated[EraseForm, form_of(EraseForm)]
) -> Response:
    """Take out what a person wrote, their name and every way to log in; for good.

    Errors: PersonNotFound (404), LastOwner (409), NameNotTyped (422).
    """
    with store.transaction() as session:
        if persons.get(session, person_id).name != form.name:
            raise NameNotTyped("the typed name does not match")
        erasing.erase(session, person_id)
        audit.record(session, visitor.actor, "persons.erase", "person", person_id)
    return go_to(visitor, f"/persons/{person_id}/erasure", notice="This person's texts are erased.")
