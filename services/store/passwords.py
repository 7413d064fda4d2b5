"""Passwords: argon2id, checked in the time it takes whether the name exists or not, and tries counted in Postgres.

A try is written down before the password is looked at, so that many at once are counted too, and taken out when it
was right. What is limited is the pair of name and address; a name or an address by itself only where that address is
not known to have logged that person in, so that nobody is locked out of where they usually are by what others try.
"""

import hashlib
import threading
from datetime import timedelta
from typing import Final
from uuid import UUID

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from services.contracts.ids import new_id
from services.errors import InvalidInput, PreceptorError
from services.store.models import LoginAttemptRow, LoginSessionRow, PasswordRow, PersonRow

MIN_CHARS: Final = 12
MAX_CHARS: Final = 256
MIN_DISTINCT: Final = 5

WINDOW: Final = timedelta(minutes=15)
MAX_OF_PAIR: Final = 8
MAX_OF_NAME: Final = 40
MAX_OF_ADDRESS: Final = 40
KNOWN_FOR: Final = timedelta(days=30)

_hasher = PasswordHasher()  # argon2id with RFC 9106's parameters for constrained memory: 64 MiB, 3 passes
_turns = threading.BoundedSemaphore(2)  # each takes 64 MiB and a core: more at once would be a way to bring us down
_NOBODYS_ID: Final = UUID(int=0)
_nobody = _hasher.hash("the password of a name that does not exist")


class PasswordTooWeak(InvalidInput):
    """The password would be guessed."""

    title = "Choose a stronger password"
    hint = f"At least {MIN_CHARS} characters, not your name; a few unrelated words are easy to remember."


class TooManyTries(PreceptorError):
    """Too many wrong passwords from here, or for this name."""

    status_code = 429
    title = "Too many tries"
    hint = "Wait, or log in with an API key, which is not limited."


def hash_password(name: str, password: str) -> str:
    """What is kept of a password. Slow on purpose: never inside a transaction. Errors: PasswordTooWeak (422)."""
    folded = password.strip().casefold()
    if len(password) < MIN_CHARS or len(set(password)) < MIN_DISTINCT or folded == name.casefold():
        raise PasswordTooWeak("this password is too easy to guess")
    if len(password) > MAX_CHARS:
        raise PasswordTooWeak(f"a password has at most {MAX_CHARS} characters", hint="Choose a shorter one.")
    with _turns:
        return _hasher.hash(password)


def is_right(kept: str | None, password: str) -> bool:
    """Whether the password is the one that is kept; takes as long where none is. Slow: never inside a transaction."""
    with _turns:
        try:
            _hasher.verify(kept or _nobody, password[: MAX_CHARS + 1])
        except (VerificationError, InvalidHashError):
            return False
    return kept is not None


def put(session: Session, person_id: UUID, kept: str) -> None:
    """Keep a person's password in place of the one before."""
    session.execute(
        insert(PasswordRow)
        .values(person_id=person_id, hash=kept)
        .on_conflict_do_update(index_elements=["person_id"], set_={"hash": kept, "changed_at": func.now()})
    )


def find(session: Session, person_id: UUID) -> PasswordRow | None:
    """The person's password, where they have one."""
    return session.get(PasswordRow, person_id, populate_existing=True)


def remove(session: Session, person_id: UUID) -> None:
    """Leave a person without a password."""
    session.execute(delete(PasswordRow).where(PasswordRow.person_id == person_id))


def begin_try(session: Session, name: str, address: str) -> tuple[PersonRow, str] | None:
    """Count a try, and give the person of this name and what is kept of their password, where there are both.

    Errors: TooManyTries (429), and then the try is not counted.
    """
    digest = _hash_name(name)
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"login {digest} {address}", 0))))
    found = session.execute(
        select(PersonRow, PasswordRow.hash)
        .join(PasswordRow, PasswordRow.person_id == PersonRow.id)
        .where(PersonRow.name == name, PersonRow.erased_at.is_(None))
    ).one_or_none()
    of_name, of_address = LoginAttemptRow.name_sha256 == digest, LoginAttemptRow.address == address
    _check_count(session, of_name & of_address, MAX_OF_PAIR)
    if not _is_known(session, _NOBODYS_ID if found is None else found[0].id, address):
        _check_count(session, of_name, MAX_OF_NAME)
        _check_count(session, of_address, MAX_OF_ADDRESS)
    session.add(LoginAttemptRow(id=new_id(), name_sha256=digest, address=address))
    session.flush()
    return None if found is None else (found[0], found[1])


def forget_tries(session: Session, name: str, address: str | None = None) -> None:
    """Take out the tries at this name, from one address or all, and those of everybody that count no more."""
    of_name = LoginAttemptRow.name_sha256 == _hash_name(name)
    session.execute(
        delete(LoginAttemptRow).where(of_name if address is None else of_name & (LoginAttemptRow.address == address))
    )
    session.execute(delete(LoginAttemptRow).where(LoginAttemptRow.created_at < func.now() - WINDOW))


def _check_count(session: Session, which: ColumnElement[bool], most: int) -> None:
    """Errors: TooManyTries, with the seconds until the oldest of too many counts no more."""
    left = func.extract("epoch", LoginAttemptRow.created_at + WINDOW - func.now())
    oldest = session.scalar(
        select(left)
        .where(which, LoginAttemptRow.created_at > func.now() - WINDOW)
        .order_by(LoginAttemptRow.created_at.desc())
        .offset(most - 1)
        .limit(1)
    )
    if oldest is not None:
        error = TooManyTries("too many wrong passwords were tried here")
        error.retry_after_seconds = max(1, int(oldest) + 1)
        raise error


def _is_known(session: Session, person_id: UUID, address: str) -> bool:
    return (
        session.scalar(
            select(LoginSessionRow.id)
            .where(
                LoginSessionRow.person_id == person_id,
                LoginSessionRow.address == address,
                LoginSessionRow.created_at > func.now() - KNOWN_FOR,
            )
            .limit(1)
        )
        is not None
    )


def _hash_name(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
