"""Idempotency keys: the answer a POST was given, kept in the transaction of its effect.

The same key with the same request gets that answer again; with another request it is refused. Requests with one key
take turns on an advisory lock, so that the second of two at once finds the answer of the first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import delete, func, select, text, tuple_
from sqlalchemy.orm import Session

from services.runtime.errors import Conflict
from services.store.tables.housekeeping import IdempotencyRow

# Arrays, not lists of parameters: a statement whose text is always the same is read and planned once a connection.
_FIND: Final = select(IdempotencyRow).from_statement(
    text(
        "SELECT i.* FROM unnest(CAST(:principals AS text[]), CAST(:keys AS text[])) AS w (principal, key) "
        "JOIN idempotency i USING (principal, key)"
    )
)
_KEEP: Final = text(
    "INSERT INTO idempotency (principal, key, route, request_sha256, status_code, body) "
    "SELECT * FROM unnest(CAST(:principals AS text[]), CAST(:keys AS text[]), CAST(:routes AS text[]), "
    "CAST(:digests AS text[]), CAST(:codes AS int[]), CAST(:bodies AS text[])) "
    "ON CONFLICT DO NOTHING RETURNING principal, key"
)


class IdempotencyKeyReused(Conflict):
    """The key was used before, for another request."""

    title = "Idempotency key already used for another request"
    hint = "Use a fresh key for every new request, and the same key only to send the same bytes again."


@dataclass(frozen=True)
class Request:
    """The identity of a request: sender, key, route and the digest of its body."""

    principal: str
    key: str
    route: str
    sha256: str


@dataclass(frozen=True)
class Stored:
    """The stored answer to a request."""

    status_code: int
    body: str


def find(session: Session, request: Request) -> Stored | None:
    """The stored answer, if this request was seen before. Errors: IdempotencyKeyReused (409)."""
    row = session.get(IdempotencyRow, (request.principal, request.key))
    if row is None:
        return None
    found = _read(row, request)
    if isinstance(found, IdempotencyKeyReused):
        raise found
    return found


def _read(row: IdempotencyRow, request: Request) -> Stored | IdempotencyKeyReused:
    if (row.route, row.request_sha256) != (request.route, request.sha256):
        other = f"{row.route} with another body" if row.route == request.route else row.route
        return IdempotencyKeyReused(f"the idempotency key {request.key!r} was used for {other}")
    return Stored(status_code=row.status_code, body=row.body)


def find_all(session: Session, requests: Sequence[Request]) -> dict[Request, Stored | IdempotencyKeyReused]:
    """Stored answers of requests already seen."""
    if not requests:
        return {}
    wanted = {(request.principal, request.key): request for request in requests}
    rows = session.execute(_FIND, {"principals": [p for p, _ in wanted], "keys": [k for _, k in wanted]}).scalars()
    return {request: _read(row, request) for row in rows if (request := wanted[row.principal, row.key])}


def keep_all(session: Session, answers: Mapping[Request, Stored]) -> set[Request]:
    """Store these answers; returns the requests whose keys were free.

    Waits for transactions that hold one of the keys. Keys are taken in order, so that callers cannot deadlock.
    """
    if not answers:
        return set()
    items = sorted(answers.items(), key=lambda item: (item[0].principal, item[0].key))
    columns = {
        "principals": [request.principal for request, _ in items],
        "keys": [request.key for request, _ in items],
        "routes": [request.route for request, _ in items],
        "digests": [request.sha256 for request, _ in items],
        "codes": [answer.status_code for _, answer in items],
        "bodies": [answer.body for _, answer in items],
    }
    kept = {(principal, key) for principal, key in session.execute(_KEEP, columns)}
    return {request for request in answers if (request.principal, request.key) in kept}


def take_turn(session: Session, request: Request) -> None:
    """Wait until no other transaction is at work on this key; holds it until this one ends."""
    turn = func.hashtextextended(f"{request.principal}\n{request.key}", 0)
    session.execute(select(func.pg_advisory_xact_lock(turn)))


def keep(session: Session, request: Request, answer: Stored) -> None:
    """Keep the answer for the next time. Errors: IdempotencyKeyReused (409), by an ingest at the same moment."""
    if not keep_all(session, {request: answer}):
        raise IdempotencyKeyReused(f"the idempotency key {request.key!r} was used for another request")


def forget_old(session: Session, days: float, limit: int) -> int:
    """Delete up to `limit` answers older than so many days; returns how many."""
    key = (IdempotencyRow.principal, IdempotencyRow.key)
    old = select(*key).where(IdempotencyRow.created_at < func.now() - timedelta(days=days)).limit(limit)
    gone = session.execute(
        delete(IdempotencyRow).where(tuple_(*key).in_(old)).returning(IdempotencyRow.key),
        execution_options={"synchronize_session": False},
    )
    return len(gone.all())
