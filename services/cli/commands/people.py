"""Commands about people: accounts, keys, passwords, erasure, login and the audit trail."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from services.cli.ids import Id, KeyId, PersonId, SessionId, read_person
from services.cli.options import AsJson, Home, Limit, Url, api_of, show
from services.cli.output.lists import list_page
from services.contracts.persons import (
    Erasure,
    Key,
    KeyCreate,
    KeyCreated,
    KeyRotate,
    LoginLink,
    PasswordLinkCreate,
    PasswordSet,
    Person,
    PersonCreate,
    PersonCreated,
    Right,
    Role,
    RoleChange,
    SessionsEnded,
)

persons = typer.Typer(no_args_is_help=True, help="People and services: their roles, and erasing their text.")
keys = typer.Typer(
    no_args_is_help=True, help="API keys: several per person, each with a name, rights and an expiry date."
)
sessions = typer.Typer(no_args_is_help=True, help="Login sessions: the browsers in which a person is logged in.")

DAY_SECONDS = 86_400


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.add_typer(persons, name="persons")
    app.add_typer(keys, name="keys")
    app.add_typer(sessions, name="sessions")
    app.command("login")(login)
    app.command("audit")(list_audit)


def _show_key(person: PersonCreated) -> str:
    """A person with their key; a repeated request, after a lost answer, gets none."""
    lost = f"the answer with the key was lost; `preceptor persons rotate-key {person.id}` makes another"
    return f"{person.name} ({person.role.value}): {person.api_key or lost}"


@persons.command("add")
def add_person(
    name: str,
    role: Annotated[Role, typer.Option(help="Decides the rights of the key.")] = Role.ANNOTATOR,
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Add a person or service; its key is shown only once."""
    with api_of(home, url) as api:
        made = api.post("/v1/persons", PersonCreate(name=name, role=role), PersonCreated)
    show(made, as_json, lambda: typer.echo(_show_key(made)))


@persons.command("list")
def list_persons(home: Home = None, url: Url = None, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List persons and services."""
    list_page("/v1/persons", home, url, limit, as_json, ("id", "name", "role", "created_at"))


@persons.command("role")
def change_role(person_id: PersonId, role: Role, home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """Change the role of a person, from their next call on."""
    with api_of(home, url) as api:
        changed = api.post(f"/v1/persons/{person_id.find(api)}/role", RoleChange(role=role), Person)
    show(changed, as_json, lambda: typer.echo(f"{changed.name} is {changed.role.value} now"))


@persons.command("rotate-key")
def rotate_key(person_id: PersonId, home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """Give a person a new key, shown only once; their old keys stop working."""
    with api_of(home, url) as api:
        made = api.post(f"/v1/persons/{person_id.find(api)}/rotate-key", None, PersonCreated)
    show(made, as_json, lambda: typer.echo(_show_key(made)))


@persons.command("revoke-key")
def revoke_key(person_id: PersonId, home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """Revoke all keys of a person."""
    with api_of(home, url) as api:
        left = api.post(f"/v1/persons/{person_id.find(api)}/revoke-key", None, Person)
    show(left, as_json, lambda: typer.echo(f"{left.name} ({left.role.value}) has no key"))


@persons.command("password-link")
def link_password(
    person_id: PersonId,
    reset: Annotated[bool, typer.Option("--reset", help="The current password stops working at once.")] = False,
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Make a link with which a person can set their password once, within three days."""
    with api_of(home, url) as api:
        made = api.post(f"/v1/persons/{person_id.find(api)}/password-link", PasswordLinkCreate(reset=reset), LoginLink)
    show(made, as_json, lambda: typer.echo(_show_link(api.url, made)))


@persons.command("set-password")
def set_password(home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """Set or change your own password for the pages; prompts for it and ends your login sessions."""
    current = typer.prompt("current password (empty if you have none)", default="", hide_input=True, show_default=False)
    new = typer.prompt("new password", hide_input=True, confirmation_prompt=True)
    with api_of(home, url) as api:
        api.send("PUT", "/v1/persons/me/password", PasswordSet(current=current, new=new))
    show({"set": True}, as_json, lambda: typer.echo("the password is set"))


@persons.command("end-sessions")
def end_sessions(
    person_id: Annotated[Id | None, typer.Argument(parser=read_person, help="The person; you by default.")] = None,
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """End all login sessions of a person; their keys keep working."""
    with api_of(home, url) as api:
        whose = api.get("/v1/persons/me", Person).id if person_id is None else person_id.find(api)
        ended = api.post(f"/v1/persons/{whose}/end-sessions", None, SessionsEnded)
    show(ended, as_json, lambda: typer.echo(f"sessions ended: {ended.num_ended}"))


@persons.command("erase")
def erase_person(
    person_id: PersonId,
    yes: Annotated[
        bool, typer.Option("--yes", help="Erase; without this option the command only shows the effects.")
    ] = False,
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Erase a person's text, name, keys, sessions and password permanently; only with --yes."""
    with api_of(home, url) as api:
        path = f"/v1/persons/{person_id.find(api)}"
        found = api.get(f"{path}/erasure", Erasure)
        if yes:
            found = api.post(f"{path}/erase", None, Erasure)

    def words() -> None:
        kept = ", ".join(f"{num} of {noun}s" for noun, num in sorted(found.texts.items())) or "none"
        typer.echo(f"texts: {kept} ({found.chars} characters); answers withdrawn: {found.answers}")
        typer.echo(f"lessons not yet used, withdrawn: {found.lessons}")
        shaped = ", ".join(str(update.number) for update in found.updates) or "none"
        typer.echo(
            f"updates it shaped: {shaped}; versions that carry them: {', '.join(found.policy_versions) or 'none'}"
        )
        typer.echo("erased" if found.is_done else "nothing was erased; add --yes to do it")

    show(found, as_json, words)


def _show_new_key(made: KeyCreated) -> str:
    """A key with its secret; a repeated request, after a lost answer, gets none."""
    return f"{made.name}: {made.api_key or 'the answer with the key was lost; rotate it'}"


@keys.command("add")
def add_key(
    name: str,
    person: Annotated[
        Id | None, typer.Option("--person", parser=read_person, help="The person; you by default.")
    ] = None,
    scope: Annotated[
        list[Right] | None, typer.Option("--scope", help="A right of the key; repeat for more, all by default.")
    ] = None,
    days: Annotated[int | None, typer.Option("--days", min=1, help="Days until it expires; never by default.")] = None,
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Create another key, shown only once; existing keys keep working."""
    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
    with api_of(home, url) as api:
        whose = None if person is None else person.find(api)
        wanted = KeyCreate(person_id=whose, name=name, scopes=scope or None, expires_at=expires_at)
        made = api.post("/v1/keys", wanted, KeyCreated)
    show(made, as_json, lambda: typer.echo(_show_new_key(made)))


@keys.command("list")
def list_keys(
    person: Annotated[
        Id | None, typer.Option("--person", parser=read_person, help="The person; you by default.")
    ] = None,
    home: Home = None,
    url: Url = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List keys, including expired and revoked keys."""
    query = {"person_id": person}
    columns = ("id", "name", "prefix", "scopes", "expires_at", "last_used_at", "revoked_at")
    list_page("/v1/keys", home, url, limit, as_json, columns, query)


@keys.command("rotate")
def rotate_one_key(
    key_id: KeyId,
    grace_days: Annotated[int, typer.Option(min=0, max=30, help="Days that the old key keeps working.")] = 0,
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Replace a key by a new one, shown only once."""
    with api_of(home, url) as api:
        made = api.post(
            f"/v1/keys/{key_id.find(api)}/rotate", KeyRotate(grace_seconds=grace_days * DAY_SECONDS), KeyCreated
        )
    show(made, as_json, lambda: typer.echo(_show_new_key(made)))


@keys.command("revoke")
def revoke_one_key(key_id: KeyId, home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """Revoke a key immediately."""
    with api_of(home, url) as api:
        over = api.post(f"/v1/keys/{key_id.find(api)}/revoke", None, Key)
    show(over, as_json, lambda: typer.echo(f"{over.name} is revoked"))


@sessions.command("list")
def list_sessions(
    person: Annotated[
        Id | None, typer.Option("--person", parser=read_person, help="The person; you by default.")
    ] = None,
    home: Home = None,
    url: Url = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List active login sessions, newest first."""
    query = {"person_id": person}
    list_page("/v1/sessions", home, url, limit, as_json, ("id", "address", "agent", "seen_at", "expires_at"), query)


@sessions.command("end")
def end_session(session_id: SessionId, home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """End one of your own login sessions."""
    with api_of(home, url) as api:
        ended = api.post(f"/v1/sessions/{session_id.find(api)}/end", None, SessionsEnded)
    show(ended, as_json, lambda: typer.echo("the session has ended"))


def login(home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """Print a link that logs you in once in a browser, within 15 minutes."""
    with api_of(home, url) as api:
        made = api.post("/v1/persons/me/login-link", None, LoginLink)
    show(made, as_json, lambda: typer.echo(_show_link(api.url, made)))


def _show_link(url: str, made: LoginLink) -> str:
    return f"{url.rstrip('/')}{made.path}" if made.path else "the answer with the link was lost; ask again"


def list_audit(
    person: Annotated[
        Id | None, typer.Option("--person", parser=read_person, help="Filter by the person who acted.")
    ] = None,
    action: Annotated[str | None, typer.Option("--action", help="Filter by action, e.g. keys.revoke.")] = None,
    noun_id: Annotated[str | None, typer.Option("--id", help="Filter by the id of the object acted on.")] = None,
    home: Home = None,
    url: Url = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List the audit trail, newest first."""
    query = {"person_id": person, "action": action, "noun_id": noun_id}
    columns = ("created_at", "person_name", "action", "noun", "noun_id", "via", "address")
    list_page("/v1/audit", home, url, limit, as_json, columns, query, whole="noun_id")
