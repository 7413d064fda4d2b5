"""A start of the stack switches the loop by the act that pages, the api and commands use."""

import pytest
from redis import Redis
from sqlalchemy import select

from services import prepare
from services.jobs.app import LESSONS_QUEUE
from services.local.servers.valkey import EmbeddedValkey
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.loop import switches
from services.store.tables.people import AuditRow
from tests.store.conftest import World

pytestmark = pytest.mark.integration


def entries(store: Store) -> list[tuple[str, str]]:
    with store.reading() as session:
        return [(row.via, row.action) for row in session.scalars(select(AuditRow).order_by(AuditRow.id))]


def loop_of(store: Store, world: World) -> tuple[bool, bool, int | None]:
    with store.reading() as session:
        row = switches.get(session, world.lineage_id)
        return row.sampling, row.training, row.max_updates


def test_a_start_that_turns_the_loop_on_is_recorded_and_wakes_the_trainer(
    settings: Settings, store: Store, world: World, broker: str
) -> None:
    with store.transaction() as session:
        switches.stop_after(session, world.lineage_id, 3)
    with Redis.from_url(broker) as redis:
        redis.delete(LESSONS_QUEUE)
        prepare.switch_loop(settings, on=True)
        assert redis.llen(LESSONS_QUEUE) == 1
    assert loop_of(store, world) == (True, True, None)
    assert entries(store) == [("system", "loop.switch")]


def test_a_start_that_changes_no_switch_leaves_no_entry(settings: Settings, store: Store, world: World) -> None:
    for on, num_entries in ((False, 1), (False, 1), (True, 2), (True, 2)):
        prepare.switch_loop(settings, on=on)
        assert loop_of(store, world) == (on, on, None)
        assert len(entries(store)) == num_entries


def test_a_start_switches_the_loop_while_the_broker_is_away(
    settings: Settings, store: Store, world: World, valkey_server: EmbeddedValkey
) -> None:
    valkey_server.kill()
    try:
        prepare.switch_loop(settings, on=True)
    finally:
        valkey_server.start()
    assert loop_of(store, world) == (True, True, None)
