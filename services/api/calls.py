"""From an HTTP request to the call of an act: who calls, and the idempotency key they sent.

Every POST takes an `Idempotency-Key`. A request that was answered before gets the stored answer again.
"""

import hashlib
from typing import Annotated, Final

from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.routing import APIRoute

from services.acts.call import Claim, PersonCall, Replay
from services.api.auth import CallerDep, to_actor
from services.api.deps import AppStateDep
from services.store.core import idempotency

REPLAY_HEADER: Final = "Idempotent-Replay"

KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Any unique text: repeating the same key and body has no further effect and gets the same answer.",
    ),
]


async def build_claim(request: Request, principal: str, key: str | None) -> Claim | None:
    """The claim of this request to have its effect once; None where it came without a key."""
    if key is None:
        return None
    matched: APIRoute = request.scope["route"]
    digest = hashlib.sha256(await request.body())
    digest.update(b"?" + request.scope["query_string"])
    route = f"{request.method} {request.url.path}"
    return Claim(idempotency.Request(principal, key, route, digest.hexdigest()), matched.status_code or 200)


async def _get_call(request: Request, caller: CallerDep, app_state: AppStateDep, key: KeyHeader = None) -> PersonCall:
    claim = await build_claim(request, str(caller.id), key)
    actor = to_actor(caller, request)
    return PersonCall(store=app_state.store, settings=app_state.settings, actor=actor, claim=claim, caller=caller)


async def _get_plain_call(request: Request, caller: CallerDep, app_state: AppStateDep) -> PersonCall:
    return PersonCall(
        store=app_state.store, settings=app_state.settings, actor=to_actor(caller, request), caller=caller
    )


CallDep = Annotated[PersonCall, Depends(_get_call)]
"""The call of a POST, by the holder of the key."""
PlainCallDep = Annotated[PersonCall, Depends(_get_plain_call)]
"""The call of a PUT or DELETE, which may be sent twice as it is."""


def _on_replay(request: Request, error: Exception) -> Response:
    assert isinstance(error, Replay)
    headers = {REPLAY_HEADER: "true"}
    return Response(error.stored.body, error.stored.status_code, headers, media_type="application/json")


def install(app: FastAPI) -> None:
    """Render repeated requests as the answers they got before."""
    app.add_exception_handler(Replay, _on_replay)
