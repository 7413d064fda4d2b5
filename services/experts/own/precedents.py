"""The precedents expert: gives the questions and right answers of other tasks that a task carries. Train tasks alone
carry some."""

from typing import Final

from pydantic import TypeAdapter, ValidationError

from services.contracts.answers import AnswerKind
from services.contracts.experts import ConsultAbstain, ConsultRequest, ConsultResult, Descriptor
from services.contracts.tasks import Precedents

_SHAPE: Final[TypeAdapter[Precedents]] = TypeAdapter(Precedents)


class PrecedentsExpert:
    """Shows the teacher how other questions were answered."""

    @property
    def descriptor(self) -> Descriptor:
        """Gives precedents in every domain."""
        return Descriptor(
            name="precedents",
            version="1",
            description="Gives the questions and right answers of other tasks that the task's owner wrote.",
            kinds=[AnswerKind.PRECEDENTS],
            domains=["*"],
            metadata_keys=["precedents"],
            deterministic=True,
            max_concurrency=64,
            usual_latency_seconds=0.01,
        )

    async def consult(self, request: ConsultRequest) -> ConsultResult | ConsultAbstain:
        """The precedents, in the task's order."""
        try:
            return ConsultResult(precedents=_SHAPE.validate_python(request.task.metadata["precedents"]))
        except ValidationError:
            return ConsultAbstain(reason="the task's precedents are not questions with answers")
