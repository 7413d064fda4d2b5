"""Acts on people, keys, experts and the loop: a form of a page and the api's route leave the same behind."""

from itertools import count
from uuid import UUID

import pytest
from sqlalchemy import select, update

from services.contracts.base import JsonObject
from services.contracts.measurements import MeasurementStatus
from services.contracts.persons import Role
from services.contracts.tasks import Split
from services.store.people import keys, passwords, persons
from services.store.tables.loop import ConsultationRow, ExpertRow
from services.store.tables.people import LoginSessionRow
from tests.acts.pairs import Pair, Scene, by_api, by_page

pytestmark = pytest.mark.integration

PASSWORD, NEW_PASSWORD = "seven grey herons at the weir", "eight white herons at the weir"
numbers = count()


def nothing(scene: Scene) -> str:
    """No object: the act makes its own, or is about the loop."""
    return "none"


def a_person(scene: Scene) -> UUID:
    with scene.store.transaction() as session:
        return persons.create(session, f"ann {next(numbers)}", Role.ANNOTATOR)[0].id


def ann(scene: Scene) -> UUID:
    """A person of a name that does not change from call to call."""
    with scene.store.transaction() as session:
        before = persons.find(session, "ann")
        if before is not None:
            before.name = f"ann {next(numbers)}"
            session.flush()
        return persons.create(session, "ann", Role.ANNOTATOR)[0].id


def somebody_logged_in(scene: Scene) -> UUID:
    with scene.store.transaction() as session:
        row, key = persons.create(session, f"ann {next(numbers)}", Role.ANNOTATOR)
    scene.other_browser().log_in(key)
    return row.id


def a_key(scene: Scene) -> UUID:
    with scene.store.transaction() as session:
        return keys.issue(session, persons.find_owner(session).id, "spare")[0].id


def a_session(scene: Scene) -> UUID:
    """A second session of the owner."""
    scene.other_browser().log_in(scene.api.key)
    with scene.store.reading() as session:
        return session.scalars(select(LoginSessionRow.id).order_by(LoginSessionRow.id.desc()).limit(1)).one()


def a_password(scene: Scene) -> str:
    with scene.store.transaction() as session:
        owner = persons.find_owner(session)
        passwords.put(session, owner.id, passwords.hash_password(owner.name, PASSWORD))
    return "none"


def an_expert(scene: Scene, status: str = "active") -> UUID:
    with scene.store.transaction() as session:
        return scene.world.expert(session, f"judge {next(numbers)}", status=status).id


def a_paused_expert(scene: Scene) -> UUID:
    expert_id = an_expert(scene, "paused")
    with scene.store.transaction() as session:
        row = session.get_one(ExpertRow, expert_id)
        passed: JsonObject = {"name": "descriptor", "passed": True, "required": True, "detail": ""}
        row.report = {"endpoint": row.endpoint, "descriptor": row.descriptor, "checks": [passed]}
    return expert_id


def an_expert_with_a_dead_consultation(scene: Scene) -> UUID:
    expert_id = an_expert(scene)
    with scene.store.transaction() as session:
        scene.world.drawn(session, scene.world.task(session, f"t{next(numbers)}"), size=1)
        mine = ConsultationRow.expert_id == expert_id
        session.execute(update(ConsultationRow).where(mine).values(status="asked"))
        session.execute(update(ConsultationRow).where(mine).values(status="dead", reason="it was away"))
    return expert_id


def an_expert_with_train_tasks(scene: Scene) -> UUID:
    """A verifier, so that the policy's own successes can be measured."""
    expert_id = an_expert(scene)
    with scene.store.transaction() as session:
        scene.world.task(session, f"t{next(numbers)}")
    return expert_id


def a_measurement(scene: Scene) -> UUID:
    expert_id = an_expert(scene)
    with scene.store.transaction() as session:
        return scene.world.measured(session, expert_id, MeasurementStatus.MEASURING).id


def a_heldout_task(scene: Scene) -> UUID:
    with scene.store.transaction() as session:
        return scene.world.task(session, f"t{next(numbers)}", split=Split.HELDOUT).id


PAIRS = (
    Pair(
        "add a service",
        nothing,
        "/persons",
        ("POST", "/v1/persons"),
        fields={"name": "pipe", "role": "service"},
        body={"name": "pipe again", "role": "service"},
    ),
    Pair(
        "add a person",
        nothing,
        "/persons",
        ("POST", "/v1/persons"),
        fields={"name": "ben", "role": "operator"},
        body={"name": "ben again", "role": "operator"},
        only_on_page=("persons.password-link",),
    ),
    Pair(
        "change a role",
        a_person,
        "/persons/{id}/role",
        ("POST", "/v1/persons/{id}/role"),
        fields={"role": "operator"},
        body={"role": "operator"},
    ),
    Pair(
        "make a link to set a password",
        a_person,
        "/persons/{id}/password-link",
        ("POST", "/v1/persons/{id}/password-link"),
        fields={"reset": "true"},
        body={"reset": True},
    ),
    Pair(
        "end a person's sessions",
        somebody_logged_in,
        "/persons/{id}/end-sessions",
        ("POST", "/v1/persons/{id}/end-sessions"),
    ),
    Pair("erase a person", ann, "/persons/{id}/erase", ("POST", "/v1/persons/{id}/erase"), fields={"name": "ann"}),
    Pair("end one's session", a_session, "/account/sessions/{id}/end", ("POST", "/v1/sessions/{id}/end")),
    Pair(
        "set one's password",
        a_password,
        "/account/password",
        ("PUT", "/v1/persons/me/password"),
        fields={"current": PASSWORD, "new": NEW_PASSWORD, "again": NEW_PASSWORD},
        body={"current": PASSWORD, "new": NEW_PASSWORD},
        only_on_page=("sessions.start",),
    ),
    Pair(
        "add a key",
        a_person,
        "/keys",
        ("POST", "/v1/keys"),
        fields={"person_id": "{id}", "name": "ci", "scopes": "read"},
        body={"person_id": "{id}", "name": "ci", "scopes": ["read"]},
    ),
    Pair("rotate a key", a_key, "/keys/{id}/rotate", ("POST", "/v1/keys/{id}/rotate")),
    Pair("revoke a key", a_key, "/keys/{id}/revoke", ("POST", "/v1/keys/{id}/revoke")),
    Pair("activate an expert", a_paused_expert, "/experts/{id}/activate", ("POST", "/v1/experts/{id}/activate")),
    Pair("pause an expert", an_expert, "/experts/{id}/pause", ("POST", "/v1/experts/{id}/pause")),
    Pair(
        "set an expert's weight",
        an_expert,
        "/experts/{id}/weight",
        ("PUT", "/v1/experts/{id}/weight"),
        fields={"weight": "0.5"},
        body={"weight": 0.5},
    ),
    Pair(
        "retire an expert",
        an_expert,
        "/experts/{id}/retire",
        ("POST", "/v1/experts/{id}/retire"),
        wakes_trainer=True,
    ),
    Pair(
        "requeue an expert's consultations",
        an_expert_with_a_dead_consultation,
        "/experts/{id}/requeue",
        ("POST", "/v1/experts/{id}/requeue"),
    ),
    Pair(
        "measure what an expert teaches",
        an_expert_with_train_tasks,
        "/experts/{id}/measure",
        ("POST", "/v1/measurements"),
        body={"expert_id": "{id}"},
    ),
    Pair("stop a measurement", a_measurement, "/measurements/{id}/stop", ("POST", "/v1/measurements/{id}/stop")),
    Pair(
        "start an evaluation",
        a_heldout_task,
        "/evaluations",
        ("POST", "/v1/evaluations"),
        fields={"split": "heldout", "num_tasks": "1", "num_samples": "2"},
        body={"split": "heldout", "num_tasks": 1, "num_samples": 2},
    ),
    Pair(
        "turn sampling on",
        nothing,
        "/loop",
        ("POST", "/v1/loop"),
        fields={"switch": "sampling", "turn": "on"},
        body={"sampling": True},
        wakes_trainer=True,
    ),
    Pair(
        "turn training off",
        nothing,
        "/loop",
        ("POST", "/v1/loop"),
        fields={"switch": "training", "turn": "off"},
        body={"training": False},
        wakes_trainer=True,
    ),
    Pair(
        "stop the loop after an update",
        nothing,
        "/loop/end",
        ("POST", "/v1/loop"),
        fields={"max_updates": "7"},
        body={"max_updates": 7},
        wakes_trainer=True,
    ),
    Pair("let the loop go on", nothing, "/loop/end", ("POST", "/v1/loop"), body={"no_end": True}, wakes_trainer=True),
)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_an_act_leaves_the_same_behind_by_its_page_and_by_the_api(scene: Scene, pair: Pair) -> None:
    left = by_page(scene, pair)
    assert left.entries
    assert (["lessons", None, {}] in left.messages) is pair.wakes_trainer
    assert left == by_api(scene, pair)
