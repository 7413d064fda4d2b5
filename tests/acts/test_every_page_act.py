"""Every form of the pages has a route of the api and a command, behind the same right."""

import inspect
from typing import Final, NamedTuple, cast

import pytest
import typer.main
from fastapi.params import Depends
from fastapi.routing import APIRoute
from typer.core import TyperGroup

from services.api.app import ROUTERS
from services.cli import program
from services.contracts.persons import Right
from services.web.app import PAGES


class Way(NamedTuple):
    """How an act is called without a page."""

    route: str
    command: str


ACTS: Final = {
    "/correct/next": Way("POST /v1/corrections/claim", "corrections claim"),
    "/correct/{correction_id}/claim": Way("POST /v1/corrections/{correction_id}/claim", "corrections claim"),
    "/correct/{correction_id}/save": Way("PUT /v1/corrections/{correction_id}/draft", "corrections draft"),
    "/correct/{correction_id}/draft": Way("PUT /v1/corrections/{correction_id}/draft", "corrections draft"),
    "/correct/{correction_id}/discard": Way("DELETE /v1/corrections/{correction_id}/draft", "corrections discard"),
    "/correct/{correction_id}/renew": Way("POST /v1/corrections/{correction_id}/renew", "corrections renew"),
    "/correct/{correction_id}/leave": Way("POST /v1/corrections/{correction_id}/leave", "corrections leave"),
    "/correct/{correction_id}/submit": Way("POST /v1/corrections/{correction_id}/submit", "corrections submit"),
    "/correct/{correction_id}/skip": Way("POST /v1/corrections/{correction_id}/skip", "corrections skip"),
    "/correct/{correction_id}/release": Way("POST /v1/corrections/{correction_id}/release", "corrections release"),
    "/correct/{correction_id}/undo": Way("POST /v1/corrections/{correction_id}/undo", "corrections undo"),
    "/answers/{answer_id}/withdraw": Way("POST /v1/answers/{answer_id}/withdraw", "answers withdraw"),
    "/dead/consultations/{consultation_id}/requeue": Way(
        "POST /v1/consultations/{consultation_id}/requeue", "consultations requeue"
    ),
    "/dead/consultations/requeue": Way("POST /v1/consultations/requeue", "consultations requeue"),
    "/dead/draws/{draw_id}/requeue": Way("POST /v1/draws/{draw_id}/requeue", "draws requeue"),
    "/dead/draws/requeue": Way("POST /v1/draws/requeue", "draws requeue"),
    "/experts/{expert_id}/activate": Way("POST /v1/experts/{expert_id}/activate", "experts activate"),
    "/experts/{expert_id}/pause": Way("POST /v1/experts/{expert_id}/pause", "experts pause"),
    "/experts/{expert_id}/retire": Way("POST /v1/experts/{expert_id}/retire", "experts retire"),
    "/experts/{expert_id}/requeue": Way("POST /v1/experts/{expert_id}/requeue", "experts requeue"),
    "/loop": Way("POST /v1/loop", "loop"),
    "/loop/end": Way("POST /v1/loop", "loop"),
    "/persons": Way("POST /v1/persons", "persons add"),
    "/persons/{person_id}/role": Way("POST /v1/persons/{person_id}/role", "persons role"),
    "/persons/{person_id}/password-link": Way("POST /v1/persons/{person_id}/password-link", "persons password-link"),
    "/persons/{person_id}/end-sessions": Way("POST /v1/persons/{person_id}/end-sessions", "persons end-sessions"),
    "/account/password": Way("PUT /v1/persons/me/password", "persons set-password"),
    "/account/sessions/end": Way("POST /v1/persons/{person_id}/end-sessions", "persons end-sessions"),
    "/account/sessions/{session_id}/end": Way("POST /v1/sessions/{session_id}/end", "sessions end"),
    "/logout": Way("POST /v1/sessions/{session_id}/end", "sessions end"),
    "/persons/{person_id}/erase": Way("POST /v1/persons/{person_id}/erase", "persons erase"),
    "/keys": Way("POST /v1/keys", "keys add"),
    "/keys/{key_id}/rotate": Way("POST /v1/keys/{key_id}/rotate", "keys rotate"),
    "/keys/{key_id}/revoke": Way("POST /v1/keys/{key_id}/revoke", "keys revoke"),
}
OF_THE_BROWSER: Final = frozenset({"/login", "/link/{token}", "/theme"})
"""Forms that change only the browser: a program has its key."""

FORMS: Final = [
    route
    for module in PAGES
    for route in module.router.routes
    if isinstance(route, APIRoute) and "POST" in (route.methods or ()) and route.path not in OF_THE_BROWSER
]
ROUTES: Final = {
    f"{method} {route.path}": route
    for module in ROUTERS
    for route in module.router.routes
    if isinstance(route, APIRoute)
    for method in route.methods or ()
}


def find_right(route: APIRoute) -> Right | None:
    """The right that the route's callers need; None for one that looks at the caller itself."""
    needed = [
        inspect.getclosurevars(one.dependency).nonlocals.get("right")
        for one in route.dependencies
        if isinstance(one, Depends) and one.dependency is not None and inspect.isfunction(one.dependency)
    ]
    found = [right for right in needed if isinstance(right, Right)]
    return found[0] if found else None


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.path)
def test_every_form_has_a_route_of_the_api_behind_the_same_right(form: APIRoute) -> None:
    assert find_right(ROUTES[ACTS[form.path].route]) == find_right(form)


@pytest.mark.parametrize("command", sorted({way.command for way in ACTS.values()}))
def test_every_form_has_a_command(command: str) -> None:
    found = typer.main.get_command(program.app)
    for word in command.split():
        found = cast(TyperGroup, found).commands[word]
