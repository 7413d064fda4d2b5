"""Rows that tests of several rooms begin with, made by the product's own functions."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy.orm import Session

from services.contracts.answers import AnswerContent
from services.store.ledger import updates
from services.store.loop import answers
from services.store.tables.ledger import UpdateRow
from services.store.tables.loop import AnswerRow, ConsultationRow, ExpertRow, RolloutRow


def start_update(session: Session, lineage_id: UUID, owner: UUID, lesson_ids: Sequence[UUID]) -> UpdateRow:
    """An update that a trainer has begun over lessons that the owner has claimed."""
    return updates.start(
        session,
        lineage_id,
        owner,
        objective="distil",
        settings={},
        parent_sha256=None,
        batch_sha256="b" * 64,
        lesson_ids=lesson_ids,
    )


def say(session: Session, rollout: RolloutRow, by: ExpertRow, content: AnswerContent) -> AnswerRow:
    """An expert's settled answer about a rollout."""
    consultation = ConsultationRow(
        lineage_id=rollout.lineage_id,
        rollout_id=rollout.id,
        expert_id=by.id,
        expert_version=by.version,
        stage=1,
        ask={"kinds": ["score"]},
        status="answered",
        deadline=datetime.now(UTC) + timedelta(hours=1),
    )
    session.add(consultation)
    session.flush()
    return answers.record(session, consultation, rollout, content)
