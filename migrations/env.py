"""Alembic's entry: migrates the database at DATABASE_URL (or the connection it is handed) to the models' schema."""

from alembic import context
from sqlalchemy import Connection

from services.runtime.settings import Settings
from services.store.core.connecting import LONG, open_engine
from services.store.core.transaction import sqlalchemy_url
from services.store.tables.schema import METADATA


def _run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=METADATA, compare_type=True, compare_server_default=True)
    with context.begin_transaction():
        context.run_migrations()


handed: Connection | None = context.config.attributes.get("connection")
if handed is not None:
    _run(handed)
else:
    url = context.config.get_main_option("sqlalchemy.url") or Settings().database_url
    engine = open_engine(sqlalchemy_url(url), LONG, connect_args={"application_name": "preceptor-migrate"})
    with engine.connect() as connection:
        _run(connection)
