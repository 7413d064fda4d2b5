"""A reading transaction changes and locks nothing."""

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from services.store.core.transaction import Store
from services.store.tables.people import PersonRow

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("statement", ["DELETE FROM person", "SELECT id FROM person FOR UPDATE"])
def test_postgres_refuses_to_write_or_to_lock_in_a_reading_transaction(store: Store, statement: str) -> None:
    with pytest.raises(DBAPIError, match="read-only transaction"), store.reading() as session:
        session.execute(text(statement))


def test_the_connection_writes_again_in_the_next_transaction(store: Store) -> None:
    with store.reading() as session:
        assert session.scalars(select(PersonRow)).all() == []
    with store.transaction() as session:
        session.execute(text("DELETE FROM person"))
