"""How every act runs: one transaction with its entry in the audit trail, and the answer kept for a repeated request.

    with call.begin() as act:
        retired = act.keep(experts.view(experts.retire(act.session, expert_id, reason)))
        act.record("experts.retire", "expert", expert_id)
    dispatch.lessons()  # after the commit

A call with an idempotency key waits its turn. If the request was answered before, `begin` raises `Replay`, which leaves
the transaction and is rendered as that answer; otherwise the answer is stored in the transaction of its effect. A call
that fails stores nothing and may be made again.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy.orm import Session

from services.acts.callers import Caller
from services.contracts.base import Json
from services.runtime.settings import Settings
from services.store.core import audit, idempotency
from services.store.core.audit import Actor
from services.store.core.transaction import Store
from services.store.loop import lineages
from services.store.tables.base import LineageRow

Answer = TypeVar("Answer", bound=BaseModel | None)


class Replay(Exception):
    """The request was answered before; rendered as that answer."""

    def __init__(self, stored: idempotency.Stored) -> None:
        super().__init__("answered before")
        self.stored = stored


@dataclass(frozen=True)
class Claim:
    """A request's claim to have its effect once; `status_code` is stored with its answer."""

    request: idempotency.Request
    status_code: int

    def check(self, session: Session) -> None:
        """Raise the stored answer as a Replay, if there is one. Errors: IdempotencyKeyReused (409)."""
        stored = idempotency.find(session, self.request)
        if stored is not None:
            raise Replay(stored)


class Act:
    """One act under way, inside its transaction."""

    def __init__(self, session: Session, call: "Call") -> None:
        self.session = session
        self.is_kept = False
        self._call = call

    @cached_property
    def lineage(self) -> LineageRow:
        """The lineage that this installation trains. Errors: LineageNotFound (404)."""
        return lineages.get(self.session, self._call.settings.lineage)

    def record(
        self, action: str, noun: str, noun_id: UUID | str | None = None, detail: Mapping[str, Json] | None = None
    ) -> None:
        """Write down in the audit trail that the actor did this, e.g. `experts.pause` to the expert of this id."""
        audit.record(self.session, self._call.actor, action, noun, noun_id, detail)

    def keep(self, answer: Answer, hide: Mapping[str, Json] | None = None) -> Answer:
        """Keep the answer for a repeated request and return it; `hide` replaces fields that are shown only once."""
        self.is_kept = True
        if self._call.claim is not None:
            kept = answer if answer is None or hide is None else answer.model_copy(update=dict(hide))
            body = "null" if kept is None else kept.model_dump_json()
            claim = self._call.claim
            idempotency.keep(self.session, claim.request, idempotency.Stored(claim.status_code, body))
        return answer


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of an act: who acts, on which store, and the idempotency key it came with."""

    store: Store
    settings: Settings
    actor: Actor
    claim: Claim | None = None

    @contextmanager
    def begin(self) -> Iterator[Act]:
        """The act's transaction. Raises Replay for a repeated request. Errors: IdempotencyKeyReused (409)."""
        with self.store.transaction() as session:
            if self.claim is not None:
                idempotency.take_turn(session, self.claim.request)
                self.claim.check(session)
            act = Act(session, self)
            yield act
            assert act.is_kept, "every act keeps its answer"

    def check(self) -> None:
        """Raise Replay for a repeated request: for acts with slow work before their transaction.

        Errors: IdempotencyKeyReused (409).
        """
        if self.claim is not None:
            with self.store.reading() as session:
                self.claim.check(session)


@dataclass(frozen=True, kw_only=True)
class PersonCall(Call):
    """A call by a person or service."""

    caller: Caller
