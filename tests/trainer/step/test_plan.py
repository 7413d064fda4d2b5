"""Who takes part in which objective, what sums are divided by, and what a score is worth."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from services.contracts.answers import Feedback, FeedbackSpan, SamplesDistribution
from services.policy.model.modeling import LoadedPolicy
from services.runtime.settings import Settings
from services.store.ledger.lesson_facts import LessonAnswer, LessonFacts
from tests.trainer.batch.test_build import top_k
from tests.trainer.world import REFERENCE_ALONE, TAUGHT_BY_ALL, answer, facts, reference
from trainer.batch.build import build_batch
from trainer.batch.rows import Row, Vocabulary
from trainer.config import TrainerConfig
from trainer.objectives.base import Objective
from trainer.objectives.scores import FromScores
from trainer.step.plan import SPANS, Plan, make_plan


def plan_of(
    policy: LoadedPolicy, lessons: Sequence[LessonFacts], **settings: object
) -> tuple[Plan, dict[int, Row], list[bool]]:
    """The plan, the rows by their place in the group, and which of them any objective can use."""
    config = TrainerConfig.model_validate(REFERENCE_ALONE | settings)
    vocabulary = Vocabulary(policy.vocab_size, policy.eos_token_ids, 512)
    rows = build_batch(lessons, TAUGHT_BY_ALL, policy.tokenizer, vocabulary, config, Settings(), newest_version=0).rows
    plan = make_plan(rows, config)
    return plan, dict(enumerate(rows)), [plan.uses(row) for row in rows]


def own(plan: Plan, name: str) -> Objective[Any]:
    return next(one for one in plan.objectives if one.name == name)


def advantages(plan: Plan, name: str) -> dict[UUID, float]:
    objective = own(plan, name)
    assert isinstance(objective, FromScores)
    return objective.advantages


@pytest.fixture
def lessons(policy: LoadedPolicy) -> list[LessonFacts]:
    """A reference; a remote top-K and a success; a failure; nothing at all; feedback on a span, unscored."""
    verdict = answer(expert="tests", score=1.0)
    said = Feedback(spans=[FeedbackSpan(start=0, end=2, text="no")])
    return [
        facts(policy, "four", index=0, answers=(reference(),), score=0.0),
        facts(policy, "five!", index=1, answers=(answer(distribution=top_k(5, policy)), verdict), score=1.0),
        facts(policy, "no", index=2, score=0.0),
        facts(policy, "2", index=3),
        facts(policy, "4 or 5", index=4, answers=(answer(feedback=said),)),
    ]


@pytest.mark.parametrize(
    ("objective", "usable"),
    [
        ("distil", [True, True, False, False, True]),
        ("forward_ce", [True, True, False, False, True]),
        ("paper", [True, False, False, False, False]),
        ("sdpo", [True, False, False, False, False]),
        ("reverse_kl", [True, False, False, False, False]),
        ("grpo", [True, True, True, False, False]),
        ("maxrl", [True, True, True, False, False]),
        ("sft", [True, False, False, False, False]),
        ("rft", [False, True, False, False, False]),
    ],
)
def test_each_objective_takes_the_rows_it_can_learn_from(
    policy: LoadedPolicy, lessons: list[LessonFacts], objective: str, usable: list[bool]
) -> None:
    assert plan_of(policy, lessons, objective=objective)[2] == usable


def test_a_mix_takes_the_rows_of_all_its_objectives(policy: LoadedPolicy, lessons: list[LessonFacts]) -> None:
    assert plan_of(policy, lessons, objective="sdpo", mix={"rft": 0.5})[2] == [True, True, False, False, False]


def test_sums_are_divided_by_the_tokens_of_those_who_take_part(
    policy: LoadedPolicy, lessons: list[LessonFacts]
) -> None:
    plan, _, _ = plan_of(policy, lessons, objective="distil", mix={"grpo": 1.0, "rft": 1.0, "sdpo": 1.0, "sft": 1.0})
    assert {one.name: one.num_tokens for one in plan.objectives} == {
        **{"distil": 4 + 5, "grpo": 4 + 5 + 2, "rft": 5, "sdpo": 4, "sft": 0}
    }
    assert plan.partial == {SPANS: 2}
    assert own(plan, "sft").num_text_tokens == len("It is 4.") + 1


def test_terms_that_cover_some_tokens_are_counted_by_name_and_imitation_by_tokens_and_trust(
    policy: LoadedPolicy,
) -> None:
    def asked(weight: float, prefixes: list[int], **more: object) -> LessonAnswer:
        said: dict[str, object] = {"prefixes": prefixes, "continuations": [[{"token_ids": [9, 8, 7]}]] * len(prefixes)}
        distribution = SamplesDistribution.model_validate({"tokenizer_hash": policy.tokenizer_hash} | said | more)
        return answer(expert="oracle", weight=weight, distribution=distribution)

    def corrected(weight: float, text: str) -> LessonAnswer:
        return answer(expert="human", weight=weight, solution=text, corrected=True)

    on_span = answer(feedback=Feedback(spans=[FeedbackSpan(start=1, end=3, text="no")]))
    plan, rows, _ = plan_of(
        policy,
        [
            facts(policy, "four", index=0, answers=(asked(1.0, [1]), on_span)),
            facts(policy, "five!", index=1, answers=(asked(1.0, [0, 3], probabilities=[0.5, 0.5]), on_span)),
            facts(policy, "no", index=2, answers=(asked(0.25, [0, 1]),)),
            facts(policy, "2+2=5!", index=3, answers=(corrected(0.5, "2+2=4!!"),)),
            facts(policy, "2+2=5!", index=4, answers=(corrected(2.0, "2+2=4?"), asked(1.0, [2]))),
        ],
    )
    assert plan.partial == {"samples:oracle": 1 + 2 + 1, SPANS: 2 + 2, "label:human": 2}
    assert own(plan, "distil").num_tokens == 5 + 2
    # after the label "!!" and "?" are left of the corrections
    rests = [(one.weight, one.num_learned) for row in rows.values() for one in row.imitations]
    assert rests == [(0.5, 2), (2.0, 1)]
    assert own(plan, "distil").num_text_tokens == 0.5 * 2 + 2.0


def test_a_solution_counts_with_the_trust_in_who_gave_it(policy: LoadedPolicy) -> None:
    told = facts(policy, "four", answers=(replace(reference(), weight=0.5),))
    plan, _, _ = plan_of(policy, [told], objective="sft")
    assert own(plan, "sft").num_text_tokens == 0.5 * (len("It is 4.") + 1)


def test_a_score_is_worth_what_it_is_above_its_siblings(policy: LoadedPolicy, lessons: list[LessonFacts]) -> None:
    plan, rows, _ = plan_of(policy, lessons, objective="grpo", grpo_std=False, mix={"maxrl": 1.0})
    values = [advantages(plan, "grpo").get(row.lesson_id) for row in rows.values()]
    assert values == [pytest.approx(-1 / 3), pytest.approx(2 / 3), pytest.approx(-1 / 3), None, None]
    assert advantages(plan, "maxrl")[rows[1].lesson_id] == pytest.approx(2.0, rel=1e-5)


def test_who_has_no_siblings_or_no_known_sampler_is_not_judged(policy: LoadedPolicy) -> None:
    alone = facts(policy, "four", score=1.0)
    assert not advantages(plan_of(policy, [alone], objective="grpo")[0], "grpo")
    unknown = facts(policy, "five", index=1, score=0.0, sampler_logprobs=None)
    assert not advantages(plan_of(policy, [alone, unknown], objective="grpo")[0], "grpo")
    late = replace(facts(policy, "six", index=2, score=0.0), late=True)
    plan, rows, _ = plan_of(policy, [alone, replace(unknown, sampler_logprobs=(-1.0,) * 4), late], objective="grpo")
    assert set(advantages(plan, "grpo")) == {rows[0].lesson_id, rows[1].lesson_id}


def test_a_late_lesson_does_not_imitate_the_same_success_again(policy: LoadedPolicy) -> None:
    late = replace(facts(policy, "four", score=1.0), late=True)
    assert plan_of(policy, [late], objective="rft")[2] == [False]


def test_a_late_lesson_keeps_its_whole_weight_when_questions_are_weighed(policy: LoadedPolicy) -> None:
    late = replace(facts(policy, "four", answers=(reference(),), score=1.0), late=True)
    plan, rows, usable = plan_of(policy, [late], question_weights="pass_rate")
    assert [plan.emphasis[row.lesson_id] for row in rows.values()] == [1.0]
    assert usable == [True]


def test_a_success_sampled_elsewhere_is_not_imitated_as_the_policys_own(policy: LoadedPolicy) -> None:
    elsewhere = facts(policy, "four", score=1.0, sampler_logprobs=None)
    assert plan_of(policy, [elsewhere], objective="rft")[2] == [False]


def test_a_question_counts_most_when_half_of_its_answers_pass(policy: LoadedPolicy) -> None:
    def lesson(index: int, score: float | None, group: int) -> LessonFacts:
        return facts(policy, "four", index=index, answers=(reference(),), score=score, group_id=UUID(int=group))

    half = [lesson(0, 1.0, 1), lesson(1, 0.0, 1)]
    rare = [lesson(index, float(index == 3), 2) for index in range(4)]
    unscored, agreed = lesson(0, None, 3), lesson(0, 1.0, 4)
    plan, rows, usable = plan_of(policy, [*half, *rare, unscored, agreed], question_weights="pass_rate")
    found = [plan.emphasis.get(row.lesson_id) for row in rows.values()]
    assert found == [0.5] * 2 + [pytest.approx((3 / 16) ** 0.5)] * 4 + [None] * 2
    assert usable == [True] * 6 + [False] * 2
    assert own(plan, "distil").num_tokens == sum(row.num_actions for row in list(rows.values())[:6]), (
        "who is left out is not counted"
    )
    assert set(plan_of(policy, [unscored])[0].emphasis.values()) == {1.0}
