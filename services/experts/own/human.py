"""The human expert: puts the consultation in the human queue and replies that the answer comes later."""

from sqlalchemy.orm import Session

from services.contracts.answers import AnswerKind
from services.contracts.experts import ConsultAbstain, ConsultLater, ConsultRequest, Descriptor
from services.contracts.tasks import Split
from services.store.core.transaction import Store
from services.store.corrections import corrections
from services.store.tables.loop import ConsultationRow, RolloutRow


class HumanExpert:
    """Asks people. The only expert that sees the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def descriptor(self) -> Descriptor:
        """Gives corrections in every domain, later."""
        return Descriptor(
            name="human",
            version="1",
            description="People who correct answers in the queue.",
            kinds=[AnswerKind.SCORE, AnswerKind.FEEDBACK, AnswerKind.SOLUTION, AnswerKind.SAMPLES, AnswerKind.EVIDENCE],
            domains=["*"],
            deterministic=False,
            answers_later=True,
            max_concurrency=8,
            usual_latency_seconds=3_600,
        )

    async def close(self) -> None:
        """Close the connections to the store."""
        self._store.close()

    def consult(self, request: ConsultRequest) -> ConsultLater | ConsultAbstain:
        """Open an item in the queue, once for each consultation. Errors: StoreUnavailable (503)."""
        with self._store.transaction() as session:
            reason = _refuse(session, request)
            if reason is not None:
                return ConsultAbstain(reason=reason)
            corrections.open_item(session, request.consultation_id)
        return ConsultLater(reason="in the people's queue")


def _refuse(session: Session, request: ConsultRequest) -> str | None:
    """The reason for not consulting people: the consultation is not ours, or not for training; None to consult them."""
    consultation = session.get(ConsultationRow, request.consultation_id)
    rollout = session.get(RolloutRow, request.rollout.id)
    if consultation is None or rollout is None or consultation.rollout_id != rollout.id:
        return "no such consultation is open here"
    if rollout.split != Split.TRAIN.value:
        return "people correct answers to train tasks only"
    return None
