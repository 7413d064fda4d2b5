"""One mechanism for idempotency keys and the audit trail, used by every POST.

    with store.transaction() as session:
        return once(session, lambda: tasks.view(tasks.add(session, ...)))

Without a key `once` just makes the answer. With one it waits its turn, gives the stored answer again where there is
one (by raising `Replay`, which leaves the transaction and is rendered as that answer), and otherwise stores what was
made in the same transaction. A request that fails stores nothing and may be sent again. What was made is written down
in the audit trail in that same transaction; an answer that is given again is not.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel
from sqlalchemy.orm import Session

from services.acts.call import Replay
from services.api.auth import CallerDep, to_actor
from services.api.calls import KeyHeader
from services.store.core import audit, idempotency
from services.store.core.audit import Actor

Answer = TypeVar("Answer", bound=BaseModel | None)


@dataclass(frozen=True)
class Act:
    """What a request does, as the audit trail has it: `tasks.add`, to a noun whose id its path or its answer has."""

    actor: Actor
    action: str
    noun: str
    noun_id: str | None


class Once:
    """One request's claim to have its effect once."""

    def __init__(self, request: idempotency.Request | None, status_code: int, act: Act) -> None:
        self._request = request
        self._status_code = status_code
        self._act = act

    def check(self, session: Session) -> None:
        """Answer a repeated request at once: for routes with work to do before their transaction.

        Errors: IdempotencyKeyReused (409).
        """
        if self._request is not None and (stored := idempotency.find(session, self._request)) is not None:
            raise Replay(stored)

    def __call__(
        self,
        session: Session,
        make: Callable[[], Answer],
        *,
        stored_as: Callable[[Answer], Answer] = lambda answer: answer,
    ) -> Answer:
        """What `make` makes, or the answer this request got before. `stored_as` takes out what is shown only once.

        Errors: IdempotencyKeyReused (409), those of `make`.
        """
        if self._request is None:
            return self._make(session, make)
        idempotency.take_turn(session, self._request)
        self.check(session)
        answer = self._make(session, make)
        kept = stored_as(answer)
        body = "null" if kept is None else kept.model_dump_json()
        idempotency.keep(session, self._request, idempotency.Stored(self._status_code, body))
        return answer

    def _make(self, session: Session, make: Callable[[], Answer]) -> Answer:
        answer = make()
        made_id = None if answer is None else getattr(answer, "id", None)
        act = self._act
        audit.record(session, act.actor, act.action, act.noun, act.noun_id or made_id)
        return answer


def describe(route: APIRoute, path_params: Mapping[str, str], actor: Actor) -> Act:
    """What a call of this route does: `pause_expert` of the experts is `experts.pause`; a name with a dot is itself."""
    tag = str(route.tags[0])
    action = route.name if "." in route.name else f"{tag}.{route.name.partition('_')[0]}"
    return Act(actor, action, tag.removesuffix("s"), next(iter(path_params.values()), None))


async def build_once(request: Request, principal: str, key: str | None, actor: Actor) -> Once:
    """The claim of this request, made by this principal, who acts as this actor."""
    matched: APIRoute = request.scope["route"]
    status_code: int = matched.status_code or 200
    act = describe(matched, request.path_params, actor)
    if key is None:
        return Once(None, status_code, act)
    digest = hashlib.sha256(await request.body())
    digest.update(b"?" + request.scope["query_string"])
    route = f"{request.method} {request.url.path}"
    return Once(idempotency.Request(principal, key, route, digest.hexdigest()), status_code, act)


async def _get_once(request: Request, caller: CallerDep, key: KeyHeader = None) -> Once:
    return await build_once(request, str(caller.id), key, to_actor(caller, request))


OnceDep = Annotated[Once, Depends(_get_once)]
