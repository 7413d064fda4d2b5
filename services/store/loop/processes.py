"""Processes: the last word of each, for `preceptor status`."""

import time
from collections.abc import Sequence

from sqlalchemy import Double, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from services.contracts.base import JsonObject
from services.store.tables.housekeeping import ProcessRow

CLOCK_OF = "clock of "
"""Begins the name under which a worker's machine is named whose clock is wrong; there only while it is."""


def beat(session: Session, name: str, pid: int, activity: str, counters: JsonObject) -> None:
    """Record that the process is alive, and its activity. Counters are running totals since its start."""
    values = {"pid": pid, "activity": activity, "counters": counters, "beat_at": func.now()}
    statement = insert(ProcessRow).values(name=name, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))


def forget(session: Session, name: str) -> None:
    """Delete the record of this name."""
    session.execute(delete(ProcessRow).where(ProcessRow.name == name))


def compare_clock(session: Session) -> float:
    """Seconds by which this machine's clock is ahead of the database's; negative where it is behind."""
    theirs: float = session.scalars(select(func.extract("epoch", func.clock_timestamp()).cast(Double))).one()
    return time.time() - theirs


def latest(session: Session) -> Sequence[ProcessRow]:
    """Every process that ever beat, by name."""
    return session.scalars(select(ProcessRow).order_by(ProcessRow.name)).all()
