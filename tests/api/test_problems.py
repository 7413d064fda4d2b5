"""What problems say, and what they leave out."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from services.api.problems import hide_rows
from services.contracts.base import check_change
from services.contracts.corrections import CORRECTION_CHANGES, CorrectionStatus
from services.runtime.errors import IllegalStatusChange
from services.store.core.transaction import Store


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (CorrectionStatus.SUBMITTED, CorrectionStatus.SUBMITTED, "is submitted, so it cannot be submitted again"),
        (CorrectionStatus.SUBMITTED, CorrectionStatus.SKIPPED, "is submitted, so it cannot be made skipped"),
    ],
)
def test_a_refused_status_change_reads_like_a_sentence(old: CorrectionStatus, new: CorrectionStatus, says: str) -> None:
    with pytest.raises(IllegalStatusChange, match=f"^this correction {says}$"):
        check_change(CORRECTION_CHANGES, old, new)


@pytest.mark.integration
def test_the_row_that_the_database_quotes_is_left_out_of_the_log(store: Store) -> None:
    with pytest.raises(IntegrityError) as caught, store.transaction() as session:
        session.execute(text("INSERT INTO status_change VALUES (:said, 'old', NULL)"), {"said": "a\nsecret"})
    assert "secret" in str(caught.value)
    assert "secret" not in hide_rows(str(caught.value))
