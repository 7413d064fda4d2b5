"""A Postgres that stands still: it acknowledges every packet and answers nothing, as under SIGSTOP."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from services.contracts.ids import new_id
from services.local.servers.postgres import EmbeddedPostgres
from services.store.core import connecting, locks
from services.store.core import transaction as store_module
from services.store.core.connecting import Patience
from services.store.core.locks import LineageLock
from services.store.core.transaction import Store, StoreUnavailable
from tests.freezing import frozen
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

SHORT = Patience(answer=4, ping=3, connect=4, pool=3)


@pytest.fixture(scope="module")
def postgres(server_folder: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(server_folder / "frozen", durable=False)
    server.start()
    yield server
    server.stop()


def _freeze_within(store: Store, postgres: EmbeddedPostgres) -> None:
    with store.transaction() as session:
        session.execute(text("SELECT 1"))
        with frozen(postgres):
            session.execute(text("SELECT 1"))


def test_a_statement_under_way_when_postgres_freezes_fails_in_time_and_the_next_one_works(
    postgres: EmbeddedPostgres,
) -> None:
    store = Store(postgres.url, pool_size=1, patience=SHORT)
    with pytest.raises(StoreUnavailable, match="no answer within 4 s"):
        _freeze_within(store, postgres)
    with store.transaction() as session:
        assert session.scalar(text("SELECT 1")) == 1
    store.close()


def test_a_pooled_connection_is_tried_before_it_is_used_and_not_for_long(postgres: EmbeddedPostgres) -> None:
    store = Store(postgres.url, pool_size=2, patience=SHORT)
    with store.transaction() as session:
        session.execute(text("SELECT 1"))
    with frozen(postgres), pytest.raises(StoreUnavailable), store.transaction() as session:
        session.execute(text("SELECT 1"))
    with store.transaction() as session:
        assert session.scalar(text("SELECT 1")) == 1
    store.close()


def test_the_lock_of_a_lineage_is_given_up_in_time_and_taken_again(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "WORK", SHORT)
    lock = LineageLock(postgres.url, new_id())
    assert lock.hold()
    with frozen(postgres), pytest.raises(StoreUnavailable):
        lock.hold()
    assert not lock.held
    assert lock.hold()
    lock.release()


def test_of_many_requests_to_a_frozen_database_one_waits_and_the_others_are_refused_at_once(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "REQUEST", SHORT)
    store = Store(postgres.url, pool_size=2, patience=SHORT)
    with store.transaction() as session:
        session.execute(text("SELECT 1"))
    refused: list[str] = []

    def ask() -> None:
        try:
            with store.transaction() as session:
                session.execute(text("SELECT 1"))
        except StoreUnavailable as error:
            refused.append(error.detail)

    with frozen(postgres):
        ask()
        threads = [threading.Thread(target=ask) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(refused) == 51
        assert sum("tried again" in said for said in refused) >= 40

    def is_answered() -> bool:
        before = len(refused)
        ask()
        return len(refused) == before

    wait_until(is_answered)
    store.close()


def test_work_through_all_rows_may_take_as_long_as_it_needs(postgres: EmbeddedPostgres) -> None:
    store = Store(postgres.url, pool_size=1, patience=SHORT)
    with store.transaction() as session:
        store_module.take_long(session)
        session.execute(text("SELECT pg_sleep(5)"))
    with pytest.raises(StoreUnavailable), store.transaction() as session:  # the same connection, by its usual patience
        session.execute(text("SELECT pg_sleep(60)"))
    store.close()


def test_a_request_in_the_worst_case_is_answered_within_ten_seconds() -> None:
    waits = connecting.REQUEST
    assert waits.pool + waits.ping + waits.connect < 10
    assert waits.pool + waits.answer < 10
