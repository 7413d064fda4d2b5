"""Processes: the last word of each, for `preceptor status`."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from services.contracts.base import JsonObject
from services.store.models import ProcessRow


def beat(session: Session, name: str, pid: int, activity: str, counters: JsonObject) -> None:
    """Say that the process lives and what it does. Counters are running totals since its start."""
    values = {"pid": pid, "activity": activity, "counters": counters, "beat_at": func.now()}
    statement = insert(ProcessRow).values(name=name, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))


def latest(session: Session) -> Sequence[ProcessRow]:
    """Every process that ever beat, by name."""
    return session.scalars(select(ProcessRow).order_by(ProcessRow.name)).all()
