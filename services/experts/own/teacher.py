"""The teacher as an expert: the policy shown the other experts' answers, its top K on the rollout's own tokens.

Second stage: it is asked given a solution or feedback. The rollout's ids are scored as they are, never re-tokenised.
The trainer has a teacher of its own over the full vocabulary; this one shows that a teacher may as well be remote.
"""

import math
from typing import Final

from services.contracts.answers import AnswerKind, TopKDistribution
from services.contracts.experts import ConsultAbstain, ConsultRequest, ConsultResult, ContextAnswer, Descriptor
from services.contracts.templates import Template, build_teacher_messages, render_feedback
from services.experts.own.policy_scores import score_or_abstain
from services.policy.client import PolicyClient
from services.policy.contract import ScoreItem, ScoreRequest

MAX_FEEDBACK_SHOWN: Final = 4_000


class TeacherExpert:
    """Scores rollouts under a prompt that also shows the other experts' answers about them."""

    def __init__(self, policy: PolicyClient, template: Template = Template.TURNS) -> None:
        self._policy = policy
        self._template = template

    @property
    def descriptor(self) -> Descriptor:
        """Gives top-K distributions in every domain, given answers."""
        return Descriptor(
            name="teacher",
            version=f"1-{self._template.value}",
            description="The serving policy shown a solution or the feedback: its likeliest tokens along the rollout.",
            kinds=[AnswerKind.TOPK, AnswerKind.EVIDENCE],
            domains=["*"],
            deterministic=False,  # the serving policy changes
            needs_answers=True,
            max_concurrency=4,
            usual_latency_seconds=2.0,
        )

    async def close(self) -> None:
        """Close the connections to the policy."""
        self._policy.close()

    def consult(self, request: ConsultRequest) -> ConsultResult | ConsultAbstain:
        """The top K and the tail at each token. Errors: PolicyUnavailable (503)."""
        solution, feedback = choose_context(request.ask.context)
        if solution is None and feedback is None:
            return ConsultAbstain(reason="no answer gives a solution or feedback to show")
        if not request.rollout.token_ids:
            return ConsultAbstain(reason="the rollout has no tokens")
        messages = build_teacher_messages(self._template, request.task.messages, solution, feedback)
        item = ScoreItem(messages=messages, response_token_ids=request.rollout.token_ids)
        ask = request.ask
        wanted = ScoreRequest(temperature=ask.temperature, top_k=ask.top_k, items=[item])
        scored = score_or_abstain(self._policy, wanted)
        if isinstance(scored, ConsultAbstain):
            return scored
        if scored.tokenizer_hash != request.rollout.tokenizer_hash:
            return ConsultAbstain(reason="the rollout is in another tokenizer's tokens than the policy's")
        rows = scored.items[0]
        return ConsultResult(
            distribution=TopKDistribution(
                tokenizer_hash=scored.tokenizer_hash,
                temperature=ask.temperature,
                token_ids=rows.top_token_ids,
                logprobs=rows.top_logprobs,
                tail_mass=[min(1.0, math.exp(logmass)) for logmass in rows.tail_logmass],
            ),
            evidence={"policy_version": scored.version, "shown": "solution" if solution else "feedback"},
        )


def choose_context(answers: list[ContextAnswer]) -> tuple[str | None, str | None]:
    """The material to show: the first solution, and all feedback in the order given."""
    solution = next((a.solution for a in answers if a.solution and a.solution.strip()), None)
    said = "\n".join(render_feedback(a.feedback) for a in answers if a.feedback is not None)
    return solution, said[:MAX_FEEDBACK_SHOWN] or None
