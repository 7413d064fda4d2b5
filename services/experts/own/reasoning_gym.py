"""The expert for tasks of reasoning-gym: their own verifiers, their own partial scores."""

import re
from typing import Final

from pydantic import ValidationError

from services.contracts.answers import AnswerKind, Feedback
from services.contracts.experts import ConsultAbstain, ConsultRequest, ConsultResult, Descriptor
from services.experts.own.reasoning import DOMAIN, METADATA_KEY, FamilyRefused, Gym, Recipe, may_be_judged

ASK_FOR_TAGS: Final = "Write the final answer, and nothing else, between <answer> and </answer>."
"""Added to every prompt."""
_ANSWER: Final = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def build_prompt(question: str) -> str:
    """The prompt of a question."""
    return f"{question}\n\n{ASK_FOR_TAGS}"


def write_answer(answer: str) -> str:
    """A right answer as the policy should write it."""
    return f"<answer>{answer}</answer>"


def find_answer(text: str) -> str | None:
    """The text between the last pair of tags; None if there is none."""
    found: list[str] = _ANSWER.findall(text)
    return found[-1].strip() if found else None


class ReasoningGymExpert:
    """Judges an answer by the verifier of its task's family."""

    def __init__(self, gym: Gym | None = None) -> None:
        self._gym = gym or Gym()
        self._version = self._gym.families().version

    @property
    def descriptor(self) -> Descriptor:
        """Scores the domains under reasoning-gym; another version of the package is another expert."""
        return Descriptor(
            name="reasoning-gym",
            version=f"1+{self._version}",
            description="Scores the answer between <answer> tags with the family's own verifier; partial scores count.",
            kinds=[AnswerKind.SCORE, AnswerKind.FEEDBACK, AnswerKind.EVIDENCE],
            domains=[f"{DOMAIN}/*"],
            metadata_keys=[METADATA_KEY],
            deterministic=True,
            verifier=True,
            max_concurrency=8,
            usual_latency_seconds=0.05,
        )

    async def close(self) -> None:
        """End the verifiers' process."""
        self._gym.close()

    def consult(self, request: ConsultRequest) -> ConsultResult | ConsultAbstain:
        """The verdict. Errors: VerifierFailed (503) when the verifier takes too long or its process dies."""
        try:
            recipe = Recipe.model_validate(request.task.metadata[METADATA_KEY])
        except ValidationError:
            return ConsultAbstain(reason="the task's recipe is not one")
        answer = find_answer(request.rollout.text)
        if answer is None:
            return _fail("Format error: there is no <answer> … </answer>.", "format")
        if not may_be_judged(recipe.name, answer):
            return _fail("Format error: the answer holds characters that no right answer has.", "format")
        try:
            scored = self._gym.score(recipe, answer)
        except FamilyRefused as error:
            return ConsultAbstain(reason=error.detail[:2000])
        if scored.question not in request.task.messages[-1].content:
            return ConsultAbstain(reason="this version of reasoning-gym makes another question of the recipe")
        if scored.score == 1.0:
            return ConsultResult(score=1.0, evidence={"verdict": "passed", "given": answer[:500]})
        verdict = "partial" if scored.score > 0 else "wrong"
        return ConsultResult(
            score=scored.score,
            feedback=Feedback(text=f"The answer {answer[:500]!r} is {_WORDS[verdict]}."),
            evidence={"verdict": verdict, "given": answer[:500]},
        )


_WORDS: Final = {"partial": "partly right", "wrong": "wrong"}


def _fail(remark: str, verdict: str) -> ConsultResult:
    return ConsultResult(score=0.0, feedback=Feedback(text=remark), evidence={"verdict": verdict})
