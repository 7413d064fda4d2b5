"""The store's own promises: it gives up on what takes too long, and keeps parameters out of its errors."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.store.core import transaction as store_module
from services.store.core.transaction import Store, StoreUnavailable

pytestmark = pytest.mark.integration


def test_a_statement_that_takes_too_long_makes_the_store_unavailable(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "STATEMENT_SECONDS", 1)
    impatient = Store(database_url, pool_size=1)
    with pytest.raises(StoreUnavailable, match="statement timeout"), impatient.transaction() as session:
        session.execute(text("SELECT pg_sleep(30)"))
    impatient.close()


def test_waiting_too_long_for_a_lock_makes_the_store_unavailable(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LOCK_SECONDS", 1)
    impatient = Store(database_url, pool_size=2)
    lock = text("SELECT pg_advisory_xact_lock(1)")
    with impatient.transaction() as holder:
        holder.execute(lock)
        with pytest.raises(StoreUnavailable, match="lock timeout"), impatient.transaction() as session:
            session.execute(lock)
    impatient.close()


def test_an_error_does_not_show_the_parameters_of_its_statement(store: Store) -> None:
    with pytest.raises(DBAPIError) as caught, store.transaction() as session:
        session.execute(text("SELECT :said, 1 / 0"), {"said": "a secret"})
    assert "a secret" not in str(caught.value)
