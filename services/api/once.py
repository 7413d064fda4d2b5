"""One mechanism for idempotency keys, used by every POST.

    with store.transaction() as session:
        return once(session, lambda: tasks.view(tasks.add(session, ...)))

Without a key `once` just makes the answer. With one it waits its turn, gives the stored answer again where there is
one (by raising `Replay`, which leaves the transaction and is rendered as that answer), and otherwise stores what was
made in the same transaction. A request that fails stores nothing and may be sent again.
"""

import hashlib
from collections.abc import Callable
from typing import Annotated, Final, TypeVar

from fastapi import Depends, FastAPI, Header, Request, Response
from pydantic import BaseModel
from sqlalchemy.orm import Session

from services.api.auth import CallerDep
from services.store import idempotency

REPLAY_HEADER: Final = "Idempotent-Replay"

Answer = TypeVar("Answer", bound=BaseModel | None)

KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Any unique text: the same key with the same body changes nothing twice and gets the same answer.",
    ),
]


class Replay(Exception):
    """The request was answered before; rendered as that answer."""

    def __init__(self, stored: idempotency.Stored) -> None:
        super().__init__("answered before")
        self.stored = stored


class Once:
    """One request's claim to have its effect once."""

    def __init__(self, request: idempotency.Request | None, status_code: int) -> None:
        self._request = request
        self._status_code = status_code

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
            return make()
        idempotency.take_turn(session, self._request)
        self.check(session)
        answer = make()
        kept = stored_as(answer)
        body = "null" if kept is None else kept.model_dump_json()
        idempotency.keep(session, self._request, idempotency.Stored(self._status_code, body))
        return answer


async def build_once(request: Request, principal: str, key: str | None) -> Once:
    """The claim of this request, made by this principal."""
    status_code: int = request.scope["route"].status_code or 200
    if key is None:
        return Once(None, status_code)
    digest = hashlib.sha256(await request.body())
    digest.update(b"?" + request.scope["query_string"])
    route = f"{request.method} {request.url.path}"
    return Once(idempotency.Request(principal, key, route, digest.hexdigest()), status_code)


async def _get_once(request: Request, caller: CallerDep, key: KeyHeader = None) -> Once:
    return await build_once(request, str(caller.id), key)


OnceDep = Annotated[Once, Depends(_get_once)]


def _on_replay(request: Request, error: Exception) -> Response:
    assert isinstance(error, Replay)
    headers = {REPLAY_HEADER: "true"}
    return Response(error.stored.body, error.stored.status_code, headers, media_type="application/json")


def install(app: FastAPI) -> None:
    """Render repeated requests as the answers they got before."""
    app.add_exception_handler(Replay, _on_replay)
