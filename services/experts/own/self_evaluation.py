"""Self-evaluation: the policy's own belief that its answer is correct, read off two labels. An opinion, no verdict."""

import math
from functools import cached_property
from typing import Final

from services.contracts.answers import AnswerKind
from services.contracts.experts import ConsultAbstain, ConsultRequest, ConsultResult, Descriptor
from services.contracts.tasks import Message
from services.experts.own.policy_scores import score_or_abstain
from services.policy.client import PolicyClient
from services.policy.contract import ScoreItem, ScoreRequest, TokenizeRequest

LABELS: Final = ("Yes", "No")
QUESTION: Final = (
    "Here is a question and an answer that was given to it.\n\nQuestion:\n{question}\n\nAnswer:\n{answer}\n\n"
    "Is the answer correct? Reply with one word, Yes or No."
)


class SelfEvaluationExpert:
    """Asks the policy about its own answer: one forward pass, P(Yes) against P(No)."""

    def __init__(self, policy: PolicyClient) -> None:
        self._policy = policy

    @property
    def descriptor(self) -> Descriptor:
        """Scores every domain, without being a verifier."""
        return Descriptor(
            name="self-evaluation",
            version="1",
            description="The policy's own probability that its answer is correct.",
            kinds=[AnswerKind.SCORE, AnswerKind.EVIDENCE],
            domains=["*"],
            deterministic=False,  # the serving policy changes
            max_concurrency=4,
            usual_latency_seconds=2.0,
        )

    async def close(self) -> None:
        """Close the connections to the policy."""
        self._policy.close()

    def consult(self, request: ConsultRequest) -> ConsultResult | ConsultAbstain:
        """The probability of Yes among the two labels. Errors: PolicyUnavailable (503)."""
        question = "\n\n".join(m.content for m in request.task.messages if m.role != "system")
        prompt = Message(role="user", content=QUESTION.format(question=question, answer=request.rollout.text))
        items = [ScoreItem(messages=[prompt], response_token_ids=ids) for ids in self._label_ids]
        scored = score_or_abstain(self._policy, ScoreRequest(items=items))
        if isinstance(scored, ConsultAbstain):
            return scored
        yes, no = (math.fsum(item.logprobs) for item in scored.items)
        score = 1 / (1 + math.exp(min(no - yes, 700.0)))
        return ConsultResult(score=score, evidence={"yes": yes, "no": no, "policy_version": scored.version})

    @cached_property
    def _label_ids(self) -> list[list[int]]:
        return [self._policy.tokenize(TokenizeRequest(text=label)).token_ids for label in LABELS]
