"""Self-evaluation: how likely the policy finds its own answer, and how likely it finds it right. No verdict.

Its score is the answer's mean log-probability, as exp(mean log p): of SmolLM2-135M's answers to functions that told
right from wrong (AUC .89 against verdicts), and the chance of Yes did not (.48, 136 answers). Both are signals in the
evidence, and both are measured against verdicts.
"""

import math
from functools import cached_property
from typing import Final

from services.contracts.answers import AnswerKind, Feedback
from services.contracts.experts import ConsultAbstain, ConsultRequest, ConsultResult, Descriptor
from services.contracts.tasks import Message
from services.experts.own.policy_scores import draw_or_abstain, score_or_abstain
from services.policy.client import PolicyClient
from services.policy.contract import SamplePrompt, SampleRequest, ScoreItem, ScoreRequest, TokenizeRequest

LABELS: Final = ("Yes", "No")
SITUATION: Final = (
    "Here is a question and an answer that was given to it.\n\nQuestion:\n{question}\n\nAnswer:\n{answer}\n\n"
)
QUESTION: Final = SITUATION + "Is the answer correct? Reply with one word, Yes or No."
CRITIQUE: Final = SITUATION + "Say in a few sentences what is wrong with the answer, if anything, and how to mend it."
MAX_CRITIQUE_TOKENS: Final = 256


class SelfEvaluationExpert:
    """Asks the policy about its own answer.

    critique_temperature: the policy also writes a critique, drawn at this temperature; None: it writes none.
    """

    def __init__(self, policy: PolicyClient, critique_temperature: float | None = None) -> None:
        self._policy = policy
        self._critique_temperature = critique_temperature

    @property
    def descriptor(self) -> Descriptor:
        """Scores every domain, without being a verifier."""
        writes = self._critique_temperature is not None
        return Descriptor(
            name="self-evaluation",
            version="2-critique" if writes else "2",
            description="How likely the policy finds its own answer, token by token, and how likely it finds it right"
            + (", with a critique that it writes." if writes else "."),
            kinds=[AnswerKind.SCORE, *([AnswerKind.FEEDBACK] if writes else []), AnswerKind.EVIDENCE],
            domains=["*"],
            deterministic=False,  # the serving policy changes
            max_concurrency=4,
            usual_latency_seconds=10.0 if writes else 2.0,
        )

    async def close(self) -> None:
        """Close the connections to the policy."""
        self._policy.close()

    def consult(self, request: ConsultRequest) -> ConsultResult | ConsultAbstain:
        """The mean probability of the answer's tokens, and a critique if one is wanted.

        Errors: PolicyUnavailable (503).
        """
        before, token_ids = self._find_answer(request)
        if not token_ids:
            return ConsultAbstain(reason="the answer has no tokens")
        asked = [Message(role="user", content=_fill(QUESTION, request))]
        items = [ScoreItem(messages=before, response_token_ids=token_ids)]
        items += [ScoreItem(messages=asked, response_token_ids=ids) for ids in self._label_ids]
        scored = score_or_abstain(self._policy, ScoreRequest(items=items))
        if isinstance(scored, ConsultAbstain):
            return scored
        if not request.rollout.turns and scored.tokenizer_hash != request.rollout.tokenizer_hash:
            return ConsultAbstain(reason="the rollout is in another tokenizer's tokens than the policy's")
        said, yes, no = (item.logprobs for item in scored.items)
        likelihood = math.exp(min(0.0, math.fsum(said) / len(said)))
        p_yes = 1 / (1 + math.exp(min(math.fsum(no) - math.fsum(yes), 700.0)))
        critique = self._write_critique(request)
        if isinstance(critique, ConsultAbstain):
            return critique
        return ConsultResult(
            score=likelihood,
            feedback=None if critique is None else Feedback(text=critique),
            evidence={"signals": {"likelihood": likelihood, "p_yes": p_yes}, "policy_version": scored.version},
        )

    def _find_answer(self, request: ConsultRequest) -> tuple[list[Message], list[int]]:
        """The rollout's own tokens after the task's prompt; of an agent's, the text of its last turn after the others,
        since the tokens before it are not all the policy's."""
        rollout = request.rollout
        if not rollout.turns:
            return request.task.messages, rollout.token_ids
        said = self._policy.tokenize(TokenizeRequest(text=rollout.text)).token_ids
        return [*request.task.messages, *rollout.turns], said

    def _write_critique(self, request: ConsultRequest) -> str | ConsultAbstain | None:
        """What the policy says of its answer; None where it is not asked to, or says nothing."""
        if self._critique_temperature is None or AnswerKind.FEEDBACK not in request.ask.kinds:
            return None
        prompt = SamplePrompt(
            id=str(request.consultation_id),
            messages=[Message(role="user", content=_fill(CRITIQUE, request))],
            seed=request.consultation_id.int % 2**63,  # the same consultation gets the same critique
        )
        drawn = draw_or_abstain(
            self._policy,
            SampleRequest(prompts=[prompt], max_new_tokens=MAX_CRITIQUE_TOKENS, temperature=self._critique_temperature),
        )
        return drawn if isinstance(drawn, ConsultAbstain) else drawn.prompts[0].samples[0].text.strip() or None

    @cached_property
    def _label_ids(self) -> list[list[int]]:
        return [self._policy.tokenize(TokenizeRequest(text=label)).token_ids for label in LABELS]


def _fill(prompt: str, request: ConsultRequest) -> str:
    question = "\n\n".join(m.content for m in request.task.messages if m.role != "system")
    return prompt.format(question=question, answer=request.rollout.text)
