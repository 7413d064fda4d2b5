"""Tasks of reasoning-gym: made anew from a recipe, judged by their own verifiers, in a process of their own."""

from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from services.contracts.base import JsonObject
from services.contracts.experts import ConsultAbstain, ConsultResult
from services.experts.own.reasoning import (
    REFUSED,
    FamilyRefused,
    Gym,
    Recipe,
    VerifierFailed,
    may_be_judged,
)
from services.experts.own.reasoning_gym import ReasoningGymExpert, build_prompt, find_answer, write_answer
from tests.experts.samples import make_question

FAMILIES = ("chain_sum", "countdown", "word_sorting", "spell_backward", "leg_counting")


@pytest.fixture(scope="module")
def gym() -> Iterator[Gym]:
    """The process with the package."""
    made = Gym()
    yield made
    made.close()


@pytest.fixture(scope="module")
def expert(gym: Gym) -> ReasoningGymExpert:
    """The expert over that process."""
    return ReasoningGymExpert(gym)


def recipe(name: str, index: int = 0, **config: bool | int | float) -> Recipe:
    return Recipe(name=name, seed=5, index=index, size=50, config=config)


def ask(
    expert: ReasoningGymExpert, gym: Gym, given: Recipe, text: str, *, prompt: str | None = None
) -> ConsultResult | ConsultAbstain:
    metadata: JsonObject = {"reasoning_gym": given.model_dump(mode="json")}
    question = make_question(
        text,
        domain=f"reasoning-gym/{given.name}",
        metadata=metadata,
        prompt=build_prompt(gym.make(given).question) if prompt is None else prompt,
    )
    return expert.consult(question)


def score(outcome: ConsultResult | ConsultAbstain) -> float | None:
    assert isinstance(outcome, ConsultResult), outcome
    return outcome.score


@pytest.mark.parametrize("name", FAMILIES)
def test_the_right_answer_scores_one(expert: ReasoningGymExpert, gym: Gym, name: str) -> None:
    given = recipe(name, index=3)
    answer = gym.make(given).answer
    assert answer is not None
    assert score(ask(expert, gym, given, f"Let me think. {write_answer(answer)}")) == 1.0


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("text", ["<answer>-987654</answer>", "<answer></answer>", "<answer>\x01 \u202e{[(</answer>"])
def test_a_wrong_answer_and_garbage_score_next_to_nothing(
    expert: ReasoningGymExpert, gym: Gym, name: str, text: str
) -> None:
    given = score(ask(expert, gym, recipe(name), text))
    assert given is not None
    assert given <= 0.05  # what some families give for an answer in the right form


def test_a_partial_score_is_kept(expert: ReasoningGymExpert, gym: Gym) -> None:
    given = recipe("spell_backward", index=1, min_word_len=6, max_word_len=6)
    answer = gym.make(given).answer
    assert answer is not None
    partly = answer[:-1] + ("x" if answer[-1] != "x" else "y")
    found = score(ask(expert, gym, given, write_answer(partly)))
    assert found is not None
    assert 0 < found < 1


def test_an_answer_without_its_tags_is_a_format_error(expert: ReasoningGymExpert, gym: Gym) -> None:
    outcome = ask(expert, gym, recipe("chain_sum"), "It is 5.")
    assert score(outcome) == 0.0
    assert isinstance(outcome, ConsultResult)
    assert outcome.evidence == {"verdict": "format"}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>5</answer>", "5"),
        ("<answer>4</answer> no: <answer>\n5 </answer>", "5"),
        ("<answer>5", None),
        ("5", None),
    ],
)
def test_the_last_answer_between_tags_counts(text: str, answer: str | None) -> None:
    assert find_answer(text) == answer


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("countdown", "__import__('os').system('touch /tmp/never')"),
        ("countdown", "exit()"),
        ("binary_matrix", "[open('/etc/passwd').read()]"),
        ("n_queens", "[exit()]"),
        ("string_insertion", "exit()"),
        ("spiral_matrix", "(1).__class__"),
        ("chain_sum", "9" * 4_001),
        ("countdown", "9**9**9**9"),
        ("puzzle24", "(2 *\n* 99) + 1"),
    ],
)
def test_an_answer_that_could_be_executed_is_never_shown_to_the_verifier(name: str, answer: str) -> None:
    assert not may_be_judged(name, answer)


def test_sums_are_shown_to_the_verifier() -> None:
    assert may_be_judged("countdown", "(3 * 4 + 12) / 2 - 1\n")


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_families_that_cannot_be_judged_safely_are_refused(gym: Gym, name: str) -> None:
    assert name not in gym.families().names
    with pytest.raises(FamilyRefused):
        gym.score(recipe(name), "1")


def test_a_verifier_that_does_not_end_is_killed_and_the_next_answer_is_judged(gym: Gym) -> None:
    hasty = Gym(seconds=2)
    given = recipe("countdown")
    with pytest.raises(VerifierFailed, match="within 2 s"):
        hasty.score(given, "9**9**9**9")
    assert hasty.score(given, "1").score < 0.5
    hasty.close()


def test_a_recipe_carries_numbers_only() -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate({"name": "basic_arithmetic", "seed": 1, "index": 0, "size": 1, "config": {"a": "eval"}})


def test_a_question_that_is_made_otherwise_by_now_is_not_judged(expert: ReasoningGymExpert, gym: Gym) -> None:
    outcome = ask(expert, gym, recipe("chain_sum"), "<answer>5</answer>", prompt="What is 2 + 3?")
    assert isinstance(outcome, ConsultAbstain)


def test_a_setting_the_family_does_not_have_is_named(gym: Gym) -> None:
    with pytest.raises(FamilyRefused, match="min_terms"):
        gym.make(recipe("chain_sum", terms=3))


def test_a_question_is_the_same_in_every_process(gym: Gym) -> None:
    other = Gym()
    for name in FAMILIES:
        assert other.make(recipe(name, index=7)) == gym.make(recipe(name, index=7))
    other.close()
