"""Shared by all routers: strict JSON, problem documents in the schema, and the lineage's name."""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import APIRouter

from sandbox.http.rendering import document
from services.api.limits import StrictRoute

MEANINGS: Final[Mapping[int, str]] = {
    401: "The API key is missing or not known.",
    403: "The key's role does not allow this.",
    404: "The named object does not exist.",
    409: "The current state does not allow this, or the idempotency key was used for another request.",
    413: "The body is larger than 8 MiB.",
    415: "The body is not declared as application/json.",
    429: "Too many wrong passwords from this address or for this name. Send it again after Retry-After seconds.",
    500: "Internal error; the request was not stored. The server's log has the cause under the id in `instance`.",
    422: "The request's content is invalid; `errors` lists the places. The request was not stored.",
    507: "A disk is nearly full; the request was not stored. Send it again once there is space.",
    503: "The database, or a service this route needs, is unavailable. Send it again after Retry-After seconds.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of a route's problems, for `responses=`."""
    return document({status: MEANINGS[status] for status in statuses})


def build_router(tag: str, route_class: type[StrictRoute] = StrictRoute) -> APIRouter:
    """A router whose routes document the problems that every route can answer."""
    return APIRouter(prefix="/v1", tags=[tag], route_class=route_class, responses=problems(401, 403, 422, 500, 503))
