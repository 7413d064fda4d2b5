"""The newest measurement of every source: of each expert, domain, source and template the one that holds."""

from typing import Final

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from services.contracts.measurements import MeasurementStatus
from services.store.tables.teaching import MeasurementRow

KEY: Final = (MeasurementRow.expert_id, MeasurementRow.domain, MeasurementRow.source, MeasurementRow.template)
IS_DECIDED: Final = MeasurementRow.status.in_(
    [MeasurementStatus.TEACHES.value, MeasurementStatus.DOES_NOT_TEACH.value, MeasurementStatus.LAPSED.value]
)
IS_UNDER_WAY: Final = MeasurementRow.status == MeasurementStatus.MEASURING.value


def select_newest(*conditions: ColumnElement[bool]) -> Select[MeasurementRow]:
    """The newest measurement of every source among those that meet these conditions, in the order of `KEY`."""
    return select(MeasurementRow).where(*conditions).ext(distinct_on(*KEY)).order_by(*KEY, MeasurementRow.id.desc())


def find_verdicts(session: Session, *conditions: ColumnElement[bool]) -> list[MeasurementRow]:
    """The verdicts that hold: of every source the newest measurement that was decided, unless it has lapsed."""
    rows = session.scalars(select_newest(*conditions, IS_DECIDED))
    return [row for row in rows if row.status != MeasurementStatus.LAPSED.value]
