"""The loop at the api's /metrics."""

from collections.abc import Iterator

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import event

from services.api.app import create_app
from services.contracts.rollouts import Purpose
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.loop import processes
from tests.http.test_metrics import scrape, value
from tests.serving import serve
from tests.store.conftest import World

pytestmark = pytest.mark.integration


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    """The api, served on loopback."""
    with serve(app) as where:
        yield where


def test_what_is_under_way_is_counted_by_status(url: str, store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
        world.drawn(session, world.task(session), size=3)
        world.drawn(session, world.task(session, "u"), size=2, purpose=Purpose.CHAT)
        processes.beat(session, "trainer", 1, "waiting", {})
    found = scrape(url)
    assert value(found, "preceptor_consultations", status="pending") == 3
    assert value(found, "preceptor_rollouts", status="open") == 3
    assert value(found, "preceptor_backlog_rollouts") == 3
    assert value(found, "preceptor_experts", status="active") == 1
    assert value(found, "preceptor_ledger_updates_total") == 0
    assert value(found, "preceptor_database_up") == 1
    assert value(found, "preceptor_broker_up") == 1
    assert value(found, "preceptor_queue_messages", queue="consult") is not None
    silent = value(found, "preceptor_process_silent_seconds", process="trainer")
    assert silent is not None
    assert silent >= 0


def test_scrapes_in_a_row_read_the_database_once(app: FastAPI, store: Store, world: World) -> None:
    statements: list[str] = []
    engine = app.state.shared.store._engine
    event.listen(engine, "before_cursor_execute", lambda *seen: statements.append(seen[2]))
    with serve(app) as url:
        scrape(url)
        once = len(statements)
        scrape(url)
    assert once > 0
    assert len(statements) == once


def test_a_database_and_a_broker_that_are_away_are_figures(settings: Settings, world: World) -> None:
    gone = settings.model_copy(
        update={"database_url": "postgresql://postgres@127.0.0.1:9/none", "redis_url": "redis://127.0.0.1:9/0"}
    )
    with serve(create_app(gone)) as url:
        found = scrape(url)
    assert value(found, "preceptor_database_up") == 0
    assert value(found, "preceptor_broker_up") == 0


def test_metrics_show_no_text_of_tasks_nor_keys(url: str, store: Store, world: World) -> None:
    with store.transaction() as session:
        world.task(session, "unmistakable")
    text = httpx2.get(f"{url}/metrics", timeout=None).text
    assert "unmistakable" not in text
    assert "pk_" not in text
