"""What could be measured in a domain."""

from services.contracts.answers import AnswerKind
from services.contracts.sources import ContextSource
from services.store.core.transaction import Store
from services.store.teaching import candidates
from tests.store.conftest import World


def test_feedback_of_an_expert_that_reads_references_is_shown_to_no_teacher_and_not_measured(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        world.expert(session)
        world.task(session)
        kinds, key = (AnswerKind.FEEDBACK, AnswerKind.SOLUTION), ("reference",)
        reader = world.expert(session, "reader", kinds=kinds, verifier=False, metadata_keys=key, granted=key)
        keys = candidates.find_keys(session, candidates.find_experts(session, world.lineage_id), "math")

    sources = [key.source for key in keys if key.expert_id == reader.id]
    assert sources == [ContextSource.PRECEDENTS, ContextSource.REFERENCE, ContextSource.REFERENCE]
