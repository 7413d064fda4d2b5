"""Idempotency keys: the answer a POST was given, kept in the transaction of its effect.

The same key with the same request gets that answer again; with another request it is refused. Requests with one key
take turns on an advisory lock, so that the second of two at once finds the answer of the first.
"""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, func, select, tuple_
from sqlalchemy.orm import Session

from services.errors import Conflict
from services.store.models import IdempotencyRow


class IdempotencyKeyReused(Conflict):
    """The key was used before, for another request."""

    title = "Idempotency key already used for another request"
    hint = "Use a fresh key for every new request, and the same key only to send the same bytes again."


@dataclass(frozen=True)
class Request:
    """What identifies a request: who sent it, its key, where to, and the digest of its body."""

    principal: str
    key: str
    route: str
    sha256: str


@dataclass(frozen=True)
class Stored:
    """The answer a request was given."""

    status_code: int
    body: str


def find(session: Session, request: Request) -> Stored | None:
    """The answer this request was given before, if it was. Errors: IdempotencyKeyReused (409)."""
    row = session.get(IdempotencyRow, (request.principal, request.key))
    if row is None:
        return None
    if (row.route, row.request_sha256) != (request.route, request.sha256):
        other = f"{row.route} with another body" if row.route == request.route else row.route
        raise IdempotencyKeyReused(f"the idempotency key {request.key!r} was used for {other}")
    return Stored(status_code=row.status_code, body=row.body)


def take_turn(session: Session, request: Request) -> None:
    """Wait until no other transaction is at work on this key; holds it until this one ends."""
    turn = func.hashtextextended(f"{request.principal}\n{request.key}", 0)
    session.execute(select(func.pg_advisory_xact_lock(turn)))


def keep(session: Session, request: Request, answer: Stored) -> None:
    """Keep the answer for the next time."""
    session.add(
        IdempotencyRow(
            principal=request.principal,
            key=request.key,
            route=request.route,
            request_sha256=request.sha256,
            status_code=answer.status_code,
            body=answer.body,
        )
    )
    session.flush()


def forget_old(session: Session, days: float, limit: int) -> int:
    """Delete up to `limit` answers older than so many days; returns how many."""
    key = (IdempotencyRow.principal, IdempotencyRow.key)
    old = select(*key).where(IdempotencyRow.created_at < func.now() - timedelta(days=days)).limit(limit)
    gone = session.execute(
        delete(IdempotencyRow).where(tuple_(*key).in_(old)).returning(IdempotencyRow.key),
        execution_options={"synchronize_session": False},
    )
    return len(gone.all())
