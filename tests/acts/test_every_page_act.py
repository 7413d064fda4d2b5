"""Every form of the pages has a route of the api and a command that calls it, behind the same right."""

import inspect
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple
from uuid import NAMESPACE_URL, uuid5

import pytest
from fastapi import FastAPI, Request
from fastapi.params import Depends
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from typer.testing import CliRunner

from services.api.app import ROUTERS
from services.cli import program
from services.contracts.persons import Erasure, Person, Right, Role
from services.web.app import PAGES
from tests.serving import serve


class Way(NamedTuple):
    """How an act is called without a page, and the right it needs; None where the act looks at the caller itself."""

    route: str
    command: str
    right: Right | None


ACTS: Final = {
    "/correct/next": Way("POST /v1/corrections/claim", "corrections claim", Right.CORRECT),
    "/correct/{correction_id}/claim": Way(
        "POST /v1/corrections/{correction_id}/claim", "corrections claim {correction_id}", Right.CORRECT
    ),
    "/correct/{correction_id}/save": Way(
        "PUT /v1/corrections/{correction_id}/draft", "corrections draft {correction_id} --file -", Right.CORRECT
    ),
    "/correct/{correction_id}/draft": Way(
        "PUT /v1/corrections/{correction_id}/draft", "corrections draft {correction_id} --file -", Right.CORRECT
    ),
    "/correct/{correction_id}/discard": Way(
        "DELETE /v1/corrections/{correction_id}/draft", "corrections discard {correction_id}", Right.CORRECT
    ),
    "/correct/{correction_id}/renew": Way(
        "POST /v1/corrections/{correction_id}/renew", "corrections renew {correction_id}", Right.CORRECT
    ),
    "/correct/{correction_id}/leave": Way(
        "POST /v1/corrections/{correction_id}/leave", "corrections leave {correction_id}", Right.CORRECT
    ),
    "/correct/{correction_id}/submit": Way(
        "POST /v1/corrections/{correction_id}/submit", "corrections submit {correction_id} --fine", Right.CORRECT
    ),
    "/correct/{correction_id}/skip": Way(
        "POST /v1/corrections/{correction_id}/skip", "corrections skip {correction_id} unclear", Right.CORRECT
    ),
    "/correct/{correction_id}/release": Way(
        "POST /v1/corrections/{correction_id}/release", "corrections release {correction_id}", Right.CORRECT
    ),
    "/correct/{correction_id}/undo": Way(
        "POST /v1/corrections/{correction_id}/undo", "corrections undo {correction_id}", Right.CORRECT
    ),
    "/answers/{answer_id}/withdraw": Way(
        "POST /v1/answers/{answer_id}/withdraw", "answers withdraw {answer_id}", Right.OPERATE
    ),
    "/dead/consultations/{consultation_id}/requeue": Way(
        "POST /v1/consultations/{consultation_id}/requeue", "consultations requeue {consultation_id}", Right.OPERATE
    ),
    "/dead/consultations/requeue": Way("POST /v1/consultations/requeue", "consultations requeue --all", Right.OPERATE),
    "/dead/draws/{draw_id}/requeue": Way("POST /v1/draws/{draw_id}/requeue", "draws requeue {draw_id}", Right.OPERATE),
    "/dead/draws/requeue": Way("POST /v1/draws/requeue", "draws requeue --all", Right.OPERATE),
    "/experts/{expert_id}/activate": Way(
        "POST /v1/experts/{expert_id}/activate", "experts activate {expert_id}", Right.OPERATE
    ),
    "/experts/{expert_id}/pause": Way("POST /v1/experts/{expert_id}/pause", "experts pause {expert_id}", Right.OPERATE),
    "/experts/{expert_id}/weight": Way(
        "PUT /v1/experts/{expert_id}/weight", "experts weight {expert_id} 0.5", Right.OPERATE
    ),
    "/experts/{expert_id}/retire": Way(
        "POST /v1/experts/{expert_id}/retire", "experts retire {expert_id}", Right.OPERATE
    ),
    "/experts/{expert_id}/measure": Way(
        "POST /v1/measurements", "experts measure {expert_id} --no-wait", Right.OPERATE
    ),
    "/measurements/{measurement_id}/stop": Way(
        "POST /v1/measurements/{measurement_id}/stop", "measurements stop {measurement_id}", Right.OPERATE
    ),
    "/experts/{expert_id}/requeue": Way(
        "POST /v1/experts/{expert_id}/requeue", "experts requeue {expert_id}", Right.OPERATE
    ),
    "/evaluations": Way("POST /v1/evaluations", "eval", Right.OPERATE),
    "/loop": Way("POST /v1/loop", "loop on", Right.OPERATE),
    "/loop/end": Way("POST /v1/loop", "loop --no-end", Right.OPERATE),
    "/persons": Way("POST /v1/persons", "persons add Ada", Right.ADMINISTER),
    "/persons/{person_id}/role": Way(
        "POST /v1/persons/{person_id}/role", "persons role {person_id} operator", Right.ADMINISTER
    ),
    "/persons/{person_id}/password-link": Way(
        "POST /v1/persons/{person_id}/password-link", "persons password-link {person_id}", Right.ADMINISTER
    ),
    "/persons/{person_id}/end-sessions": Way(
        "POST /v1/persons/{person_id}/end-sessions", "persons end-sessions {person_id}", None
    ),
    "/account/password": Way("PUT /v1/persons/me/password", "persons set-password", None),
    "/account/sessions/end": Way("POST /v1/persons/{person_id}/end-sessions", "persons end-sessions", None),
    "/account/sessions/{session_id}/end": Way("POST /v1/sessions/{session_id}/end", "sessions end {session_id}", None),
    "/logout": Way("POST /v1/sessions/{session_id}/end", "sessions end {session_id}", None),
    "/persons/{person_id}/erase": Way(
        "POST /v1/persons/{person_id}/erase", "persons erase {person_id} --yes", Right.ADMINISTER
    ),
    "/keys": Way("POST /v1/keys", "keys add laptop", None),
    "/keys/{key_id}/rotate": Way("POST /v1/keys/{key_id}/rotate", "keys rotate {key_id}", None),
    "/keys/{key_id}/revoke": Way("POST /v1/keys/{key_id}/revoke", "keys revoke {key_id}", None),
}
NAMED: Final = re.compile(r"{(\w+)}")
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


IDS: Final = {name: uuid5(NAMESPACE_URL, name) for way in ACTS.values() for name in NAMED.findall(way.route)}
"""An id for each that a route names."""
TYPED: Final = "old password\nnew password\nnew password\n"
"""What is typed, or read as a file, where a command reads standard input."""


def way_of(form: APIRoute) -> Way:
    assert form.path in ACTS, f"the form {form.path} is not in ACTS: name the route and the command that do the same"
    return ACTS[form.path]


def find_right(route: APIRoute) -> Right | None:
    """The right that the route's dependencies ask for."""
    found = [
        value
        for one in route.dependencies
        if isinstance(one, Depends) and inspect.isfunction(one.dependency)
        for value in inspect.getclosurevars(one.dependency).nonlocals.values()
        if isinstance(value, Right)
    ]
    assert len(found) <= 1, f"{route.path} asks for several rights: {found}"
    return found[0] if found else None


class Recorder:
    """An api that writes down which routes are called: it knows one person, and refuses every change."""

    def __init__(self) -> None:
        self.changes: list[str] = []
        self.app = FastAPI()
        self.app.add_api_route("/{path:path}", self._answer, methods=["GET", "POST", "PUT", "DELETE"])

    async def _answer(self, request: Request) -> JSONResponse:
        path = request.url.path
        if request.method != "GET":
            self.changes.append(f"{request.method} {path}")
            return JSONResponse({}, 409)
        known = {
            "/v1/persons/me": Person(
                id=IDS["person_id"], name="Ada", role=Role.OWNER, created_at=datetime(2026, 1, 1, tzinfo=UTC)
            ),
            f"/v1/persons/{IDS['person_id']}/erasure": Erasure(
                person_id=IDS["person_id"],
                is_done=False,
                texts={},
                chars=0,
                answers=0,
                lessons=0,
                updates=[],
                policy_versions=[],
            ),
        }
        return JSONResponse(known[path].model_dump(mode="json")) if path in known else JSONResponse({}, 404)


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """The api that commands call in these tests."""
    made = Recorder()
    with serve(made.app) as url:
        monkeypatch.setenv("PRECEPTOR_HOME", str(tmp_path))
        monkeypatch.setenv("PRECEPTOR_API_URL", url)
        monkeypatch.setenv("PRECEPTOR_API_KEY", "pk_any")
        yield made


def test_every_act_named_here_is_a_form() -> None:
    assert ACTS.keys() <= {form.path for form in FORMS}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.path)
def test_every_form_has_a_route_of_the_api_behind_the_same_right(form: APIRoute) -> None:
    way = way_of(form)
    assert way.route in ROUTES, f"the api has no route {way.route}, which ACTS names for the form {form.path}"
    assert (find_right(form), find_right(ROUTES[way.route])) == (way.right, way.right)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.path)
def test_every_form_has_a_command_that_calls_its_route(form: APIRoute, recorder: Recorder) -> None:
    way = way_of(form)
    CliRunner().invoke(program.app, way.command.format(**IDS).split(), input=TYPED)
    assert recorder.changes == [way.route.format(**IDS)]
