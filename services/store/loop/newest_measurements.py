"""The newest measurement of every source: of each expert, domain, source and template the one that holds."""

from typing import Final

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.dialects.postgresql import distinct_on

from services.contracts.measurements import MeasurementStatus
from services.store.tables.teaching import MeasurementRow

KEY: Final = (MeasurementRow.expert_id, MeasurementRow.domain, MeasurementRow.source, MeasurementRow.template)
IS_DECIDED: Final = MeasurementRow.status.in_([MeasurementStatus.TEACHES.value, MeasurementStatus.DOES_NOT_TEACH.value])
IS_UNDER_WAY: Final = MeasurementRow.status == MeasurementStatus.MEASURING.value


def select_newest(*conditions: ColumnElement[bool]) -> Select[MeasurementRow]:
    """The newest measurement of every source among those that meet these conditions, in the order of `KEY`."""
    return select(MeasurementRow).where(*conditions).ext(distinct_on(*KEY)).order_by(*KEY, MeasurementRow.id.desc())
