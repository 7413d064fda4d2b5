"""How measurements are decided, in rows written by hand."""

import pytest

from services.contracts.answers import AnswerKind
from services.contracts.measurements import MeasurementStatus
from services.contracts.sources import ContextSource
from services.store.core.transaction import Store
from services.store.teaching import looks
from services.store.teaching.sequential_test import LEVEL
from tests.store.conftest import World


@pytest.mark.parametrize(
    ("status", "source", "num_shared"),
    [
        ("active", ContextSource.FEEDBACK, 1),
        ("active", ContextSource.SOLUTION, 2),
        ("probation", ContextSource.FEEDBACK, 6),  # feedback, and a solution by two templates, in each of two domains
        ("probation", ContextSource.SOLUTION, 6),
    ],
)
def test_the_level_is_shared_by_the_templates_of_a_source_and_on_probation_by_everything_of_the_expert(
    store: Store, world: World, status: str, source: ContextSource, num_shared: int
) -> None:
    with store.transaction() as session:
        world.expert(session)
        world.task(session)
        world.task(session, "other", domain="code")
        kinds = (AnswerKind.FEEDBACK, AnswerKind.SOLUTION)
        tutor = world.expert(session, "tutor", kinds=kinds, verifier=False, status=status)
        measured = world.measured(session, tutor.id, MeasurementStatus.MEASURING, source=source)

        assert looks.find_level(session, measured) == LEVEL / num_shared
