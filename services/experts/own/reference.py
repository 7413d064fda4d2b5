"""The reference expert: gives the task's own answer as a solution. Train tasks alone carry one."""

from services.contracts.answers import AnswerKind
from services.contracts.experts import ConsultAbstain, ConsultRequest, ConsultResult, Descriptor


class ReferenceExpert:
    """Shows the reference answer to the teacher."""

    @property
    def descriptor(self) -> Descriptor:
        """Gives a solution in every domain."""
        return Descriptor(
            name="reference",
            version="1",
            description="Gives the answer the task's owner wrote.",
            kinds=[AnswerKind.SOLUTION],
            domains=["*"],
            metadata_keys=["reference"],
            deterministic=True,
            max_concurrency=64,
            usual_latency_seconds=0.01,
        )

    async def consult(self, request: ConsultRequest) -> ConsultResult | ConsultAbstain:
        """The reference, whole."""
        reference = request.task.metadata["reference"]
        if not isinstance(reference, str) or not reference.strip():
            return ConsultAbstain(reason="the task's reference is not text")
        return ConsultResult(solution=reference)
