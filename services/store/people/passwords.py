"""Passwords: argon2id, checked in the time it takes whether the name exists or not, and tries counted in Postgres.

A try is recorded before the password is checked, so that simultaneous tries are counted too, and deleted when the
password was right. The limit is per pair of name and address. A name or an address alone is limited only for addresses
from which that person has not logged in, so that others cannot lock a person out of their usual place.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final
from uuid import UUID

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session
from zxcvbn import zxcvbn

from services.contracts.ids import new_id
from services.runtime.errors import InvalidInput, PreceptorError
from services.store.tables.people import LoginAttemptRow, LoginSessionRow, PasswordRow, PersonRow

MIN_CHARS: Final = 12
MAX_CHARS: Final = 256
LEAST_STRENGTH: Final = 3
"""Of zxcvbn's 0 to 4: it would take ten to the eighth guesses or more."""
MAX_JUDGED_CHARS: Final = 72
"""The characters that zxcvbn reads; its time grows with the square."""
MAX_WAITING: Final = 8
"""Passwords that may wait for their turn: each waits in a thread that other requests need."""

WINDOW: Final = timedelta(minutes=15)
MAX_OF_PAIR: Final = 8
MAX_OF_NAME: Final = 40
MAX_OF_ADDRESS: Final = 40
KNOWN_FOR: Final = timedelta(days=30)

_hasher = PasswordHasher()  # argon2id with RFC 9106's parameters for constrained memory: 64 MiB, 3 passes
_turns = threading.BoundedSemaphore(2)  # each takes 64 MiB and a core: more at once would be a way to bring us down
_places = threading.BoundedSemaphore(2 + MAX_WAITING)
_NOBODYS_ID: Final = UUID(int=0)
_nobody = _hasher.hash("the password of a name that does not exist")


class PasswordTooWeak(InvalidInput):
    """The password is too easy to guess."""

    title = "Choose a stronger password"
    hint = f"At least {MIN_CHARS} characters, not your name; a few unrelated words are easy to remember."


class TooManyTries(PreceptorError):
    """Too many wrong passwords from here, or for this name."""

    status_code = 429
    title = "Too many tries"
    hint = "Wait, or log in with an API key, which is not limited."


class PasswordsBusy(PreceptorError):
    """Too many passwords are being checked, so this one was not."""

    status_code = 503
    title = "Too many people log in at once"
    hint = "Try again in a moment, or log in with an API key."
    retry_after_seconds = 2


def hash_password(name: str, password: str) -> str:
    """The hash of a password. Slow on purpose: never inside a transaction.

    Errors: PasswordTooWeak (422), PasswordsBusy (503).
    """
    if len(password) > MAX_CHARS:
        raise PasswordTooWeak(f"a password has at most {MAX_CHARS} characters", hint="Choose a shorter one.")
    if len(password) < MIN_CHARS or zxcvbn(password[:MAX_JUDGED_CHARS], user_inputs=[name])["score"] < LEAST_STRENGTH:
        raise PasswordTooWeak("this password is too easy to guess")
    with _turn():
        return _hasher.hash(password)


def is_right(kept: str | None, password: str) -> bool:
    """Whether the password is the one that is kept; takes as long where none is. Slow: never inside a transaction.

    Errors: PasswordsBusy (503).
    """
    with _turn():
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


def is_still(session: Session, person_id: UUID, kept: str) -> bool:
    """Whether this is the stored hash of the person's password; it stays so until the transaction ends.

    A change of the password or an erasure waits meanwhile, and then ends the session that this transaction starts.
    """
    found = session.scalar(
        select(PasswordRow.hash)
        .join(PersonRow, PersonRow.id == PasswordRow.person_id)
        .where(PasswordRow.person_id == person_id, PersonRow.erased_at.is_(None))
        .with_for_update(read=True)
    )
    return found == kept


def remove(session: Session, person_id: UUID) -> None:
    """Leave a person without a password."""
    session.execute(delete(PasswordRow).where(PasswordRow.person_id == person_id))


def begin_try(session: Session, name: str, address: str) -> tuple[PersonRow, str] | None:
    """Count a try; returns the person of this name and their password's hash, if both exist.

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


@contextmanager
def _turn() -> Iterator[None]:
    """One of the few that are worked on at once. Errors: PasswordsBusy, when many wait already."""
    if not _places.acquire(blocking=False):
        raise PasswordsBusy("too many passwords are being checked")
    try:
        with _turns:
            yield
    finally:
        _places.release()


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
