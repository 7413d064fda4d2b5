"""One act called in two ways, by a page's form and by the api: both must leave the same behind."""

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from redis import Redis
from sqlalchemy import select

from services.contracts.base import Json
from services.jobs.app import LESSONS_QUEUE
from services.store.core.transaction import Store
from services.store.tables.people import AuditRow
from tests.api.conftest import Api
from tests.store.conftest import World
from tests.web.conftest import Browser

ANY_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
QUEUES = ("sample", "consult", "maintain", LESSONS_QUEUE)


@dataclass(frozen=True)
class Scene:
    """The first owner's browser and api over one store, and the broker that messages go to."""

    store: Store
    world: World
    browser: Browser
    api: Api
    other_browser: Callable[[], Browser]
    redis: Redis


@dataclass(frozen=True)
class Pair:
    """One act. `arrange` makes what it is about and returns the id, which stands for `{id}` in paths and bodies.

    only_on_page: actions that the page's form takes besides, such as opening a session.
    """

    name: str
    arrange: Callable[[Scene], UUID | str]
    form: str
    request: tuple[str, str]
    fields: Mapping[str, str] = field(default_factory=dict)
    body: Json = None
    only_on_page: tuple[str, ...] = ()
    wakes_trainer: bool = False


@dataclass(frozen=True)
class Left:
    """What an act left behind: entries of the audit trail and messages, every id by its place among them."""

    entries: list[Json]
    messages: list[Json]


def by_page(scene: Scene, pair: Pair) -> Left:
    """What the page's form leaves."""
    made = str(pair.arrange(scene))
    token = scene.browser.token("/account")

    def send() -> None:
        fields = {name: value.replace("{id}", made) for name, value in pair.fields.items()}
        response = scene.browser.send_as(token, pair.form.replace("{id}", made), **fields)
        assert response.status_code in (200, 204, 303), response.text

    left = _watch(scene, made, send)
    entries = [one for one in left.entries if isinstance(one, list) and one[0] not in pair.only_on_page]
    return Left([*entries], left.messages)


def by_api(scene: Scene, pair: Pair) -> Left:
    """What the api's route leaves."""
    made = str(pair.arrange(scene))
    method, path = pair.request
    body = json.loads(json.dumps(pair.body).replace("{id}", made))
    headers = {"Authorization": f"Bearer {scene.api.key}"}

    def send() -> None:
        content = {} if body is None else {"json": body}
        response = scene.api.http.request(method, path.replace("{id}", made), headers=headers, **content)
        assert response.is_success, response.text

    return _watch(scene, made, send)


def _watch(scene: Scene, made: str, act: Callable[[], None]) -> Left:
    with scene.store.reading() as session:
        before = set(session.scalars(select(AuditRow.id)))
    scene.redis.delete(*QUEUES)
    act()
    with scene.store.reading() as session:
        rows = session.scalars(select(AuditRow).order_by(AuditRow.id)).all()
        entries = [[row.action, row.noun, row.noun_id, row.detail] for row in rows if row.id not in before]
    left = json.dumps([sorted(entries, key=str), [*_messages(scene)]]).replace(made, "ID")
    ids: dict[str, str] = {}
    left = ANY_ID.sub(lambda found: ids.setdefault(found[0], f"id {len(ids)}"), left)
    return Left(*json.loads(left))


def _messages(scene: Scene) -> list[Json]:
    found: list[Json] = []
    for queue in QUEUES:
        for raw in scene.redis.lrange(queue, 0, -1):
            message = json.loads(raw)
            body = json.loads(base64.b64decode(message["body"]))
            found.append([queue, message["headers"].get("task"), body[0] if isinstance(body, list) else body])
    return found
