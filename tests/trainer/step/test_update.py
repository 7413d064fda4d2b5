"""One update on the tiny model: what it moves, what it leaves alone, and that it adds up however it is cut."""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from services.contracts.answers import Feedback, FeedbackSpan
from services.contracts.rollouts import Sampling
from services.contracts.sources import ContextSource
from services.contracts.updates import TermKind
from services.policy.artifacts import ArtifactStore
from services.policy.model.modeling import LoadedPolicy, encode_text, load_policy
from services.runtime.settings import Settings
from services.store.ledger.lesson_facts import LessonFacts
from tests.trainer.batch.building import siblings
from tests.trainer.batch.test_build import samples, top_k
from tests.trainer.world import ANSWERS, TAUGHT_BY_ALL, answer, facts, reference
from trainer.batch.build import build_batch
from trainer.batch.rows import Batch, LabelRow, Row, SampleRows, Source, TopKRows
from trainer.config import TrainerConfig
from trainer.losses.terms import FullVocabulary
from trainer.objectives.registry import OBJECTIVES
from trainer.step.plan import make_plan
from trainer.step.ranks import Ranks
from trainer.step.reading import read_teacher
from trainer.step.state import CheckpointDiffers, TrainerState, begin, prune, restore, save
from trainer.step.teacher import copy_weights, make_teacher, read_under_contexts, trainable, with_weights
from trainer.step.update import StepResult, Stopped, make_update, split_rows

ALONE = Ranks(0, 1)
CONFIG = TrainerConfig(lora_r=4, lam=0.5, learning_rate=3e-3)
SETTINGS = Settings(max_new_tokens=64, teacher_temperature=0.5)


def fresh(folder: Path, config: TrainerConfig = CONFIG) -> TrainerState:
    return begin(load_policy(folder), config)


def group(policy: LoadedPolicy) -> list[LessonFacts]:
    return [
        facts(policy, text, index=index, answers=(reference("It is 4."),), score=float(index == 6))
        for index, text in enumerate(ANSWERS)
    ]


def batch_of(state: TrainerState, lessons: Sequence[LessonFacts], config: TrainerConfig = CONFIG) -> Batch:
    return build_batch(lessons, TAUGHT_BY_ALL, state.tokenizer, state.vocabulary, config, SETTINGS, newest_version=0)


def train(state: TrainerState, batch: Batch, config: TrainerConfig = CONFIG) -> StepResult:
    return make_update(state, batch, config, SETTINGS, ALONE, lambda: False)


def terms_of(result: StepResult) -> list[TermKind]:
    return [term.kind for one in result.contributions for term in one.terms]


def test_updates_bring_the_student_nearer_to_its_teacher(model_folder: Path, policy: LoadedPolicy) -> None:
    state = fresh(model_folder)
    batch = batch_of(state, group(policy))
    costs = [float(str(train(state, batch).metrics["kl"])) for _ in range(6)]
    assert costs[-1] < 0.7 * costs[0]
    assert state.number == 6


def test_a_base_in_half_precision_trains_with_its_adapter_in_full_precision(
    model_folder: Path, policy: LoadedPolicy
) -> None:
    state = begin(load_policy(model_folder, dtype=torch.bfloat16), CONFIG)
    batch = batch_of(state, group(policy))
    costs = [float(str(train(state, batch).metrics["kl"])) for _ in range(4)]
    assert {parameter.dtype for parameter in trainable(state.model).values()} == {torch.float32}
    assert costs[-1] < costs[0]


def test_a_fresh_adapter_changes_nothing_so_the_first_ratios_are_one(model_folder: Path, policy: LoadedPolicy) -> None:
    state = fresh(model_folder)
    with torch.no_grad(), state.model.disable_adapter():
        assert all(float(p.abs().sum()) == 0 for n, p in trainable(state.model).items() if "lora_B" in n)


def test_the_loss_is_the_same_however_the_update_is_cut_into_micro_batches(
    model_folder: Path, policy: LoadedPolicy
) -> None:
    ended = []
    for max_rows in (1, 8, 64):
        config = CONFIG.model_copy(update={"micro_batch_rows": max_rows})
        state = fresh(model_folder)
        result = train(state, batch_of(state, siblings(policy, {2, 5})), config)
        ended.append((result.metrics["loss"], copy_weights(state.model)))
    for loss, weights in ended[1:]:
        assert loss == pytest.approx(ended[0][0], abs=1e-5)
        for name, tensor in weights.items():
            assert torch.allclose(tensor, ended[0][1][name], atol=1e-5)


def test_siblings_that_share_a_baseline_are_never_parted(model_folder: Path, policy: LoadedPolicy) -> None:
    state = fresh(model_folder)
    whole = split_rows(batch_of(state, group(policy)).rows, max_rows=2, share_baseline=True)
    halved = split_rows(batch_of(state, siblings(policy, {2, 5})).rows, max_rows=4, share_baseline=True)
    assert [len(rows) for rows in whole] == [8]
    assert [{row.half for row in rows} for rows in halved] == [{0}, {1}]


def test_siblings_that_share_no_baseline_go_through_the_model_so_many_at_a_time(
    model_folder: Path, policy: LoadedPolicy
) -> None:
    rows = batch_of(fresh(model_folder), group(policy)).rows
    assert [len(part) for part in split_rows(rows, max_rows=3, share_baseline=False)] == [3, 3, 2]
    shares: dict[str, dict[str, object]] = {
        "distil": {},
        "without its future term": {"lam": 0.0},
        "scores alone": {"objective": "grpo"},
        "distil in a mix": {"objective": "grpo", "mix": {"distil": 0.5}},
    }
    plans = {name: make_plan(rows, TrainerConfig.model_validate(given)) for name, given in shares.items()}
    assert [name for name, plan in plans.items() if plan.shares_baseline] == ["distil", "distil in a mix"]


def test_a_row_with_a_nan_is_invalid_and_the_others_train_as_if_it_were_not_there(
    model_folder: Path, policy: LoadedPolicy
) -> None:
    lessons = group(policy)
    bad = replace(lessons[3], sampler_logprobs=(math.nan,) * len(lessons[3].token_ids))
    with_bad, without = fresh(model_folder), fresh(model_folder)
    result = train(with_bad, batch_of(with_bad, [*lessons[:3], bad, *lessons[4:]]))
    train(without, batch_of(without, [*lessons[:3], *lessons[4:]]))
    invalid = {one.lesson_id: one.invalid for one in result.contributions if one.invalid}
    assert list(invalid) == [bad.lesson_id]
    assert "NaN" in str(invalid[bad.lesson_id])
    assert result.metrics["num_rows_invalid"] == 1
    expected = copy_weights(without.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in copy_weights(with_bad.model).items())


def top_k_rows(
    row: Row,
    ids: tuple[int, ...] = (4, 5),
    logprobs: tuple[float, ...] = (math.log(0.5), math.log(0.25)),
    tail: float = 0.25,
) -> TopKRows:
    """A remote expert's word on every token of a row, all of it in order but for what is given for its last."""
    rest = len(row.token_ids) - 1
    return TopKRows(
        "remote",
        1.0,
        (*[(4, 5)] * rest, ids),
        (*[(math.log(0.5), math.log(0.25))] * rest, logprobs),
        (*[0.25] * rest, tail),
        Source((), ("remote@1",)),
    )


SPOILED: dict[str, Callable[[Row], Row]] = {
    "the expert's logprobs are NaN": lambda row: replace(row, top_k=(top_k_rows(row, logprobs=(math.nan, -1.0)),)),
    "do not sum to 1": lambda row: replace(row, top_k=(top_k_rows(row, tail=0.5),)),
    "an id is listed twice": lambda row: replace(row, top_k=(top_k_rows(row, ids=(4, 4)),)),
    "topk:remote: id outside the vocabulary": lambda row: replace(row, top_k=(top_k_rows(row, ids=(4, 10**6)),)),
    "samples:remote: id outside the vocabulary": lambda row: replace(
        row, samples=(SampleRows("remote", 1.0, {0: (10**6,)}, {}, False, Source((), ("remote@1",))),)
    ),
    "probability outside 0..1": lambda row: replace(
        row, samples=(SampleRows("remote", 1.0, {0: (4,)}, {0: 1.5}, False, Source((), ("remote@1",))),)
    ),
    "label:remote: id outside the vocabulary": lambda row: replace(
        row, labels=(LabelRow("remote", 1.0, 0, 10**6, Source((), ("remote@1",))),)
    ),
    "temperature must be above 0": lambda row: replace(row, temperature=0.0),
}


@pytest.mark.parametrize("reason", list(SPOILED))
def test_a_lesson_whose_expert_means_nothing_is_set_aside_by_reason_and_the_update_goes_on_without_it(
    model_folder: Path, policy: LoadedPolicy, reason: str
) -> None:
    with_bad, without = fresh(model_folder), fresh(model_folder)
    one, bad, other = (replace(row, top_k=(top_k_rows(row),)) for row in batch_of(with_bad, group(policy)[:3]).rows)
    result = train(with_bad, Batch((one, SPOILED[reason](bad), other), {}))
    invalid = {found.lesson_id: str(found.invalid) for found in result.contributions if found.invalid}
    assert list(invalid) == [bad.lesson_id]
    assert reason in invalid[bad.lesson_id]
    assert result.untrained is None
    train(without, Batch((one, other), {}))
    expected = copy_weights(without.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in copy_weights(with_bad.model).items())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"action_mask": (False,) * 4}, "no token of the rollout is an action"),
        ({"token_ids": (4, 5, 6, 10**6)}, "outside the vocabulary"),
    ],
)
def test_a_rollout_without_an_action_or_with_an_unknown_token_is_set_aside_before_the_update(
    model_folder: Path, policy: LoadedPolicy, changes: dict[str, object], reason: str
) -> None:
    state = fresh(model_folder)
    good = facts(policy, "five", index=1, answers=(reference(),))
    bad = replace(facts(policy, "four", answers=(reference(),)), **changes)  # type: ignore[arg-type]
    result = train(state, batch_of(state, [bad, good]))
    assert result.untrained is None
    assert [(found.lesson_id, bool(found.invalid)) for found in result.contributions] == [
        (good.lesson_id, False),
        (bad.lesson_id, True),
    ]
    assert reason in str(result.contributions[1].invalid)


def test_an_update_without_usable_feedback_moves_nothing_and_counts_its_rows(
    model_folder: Path, policy: LoadedPolicy
) -> None:
    state = fresh(model_folder)
    before = copy_weights(state.model)
    result = train(state, batch_of(state, [facts(policy, answers=(answer(score=1.0),))]))
    assert result.untrained == "none of its rows has usable feedback"
    assert state.number == 0
    assert result.metrics["num_rows_unused"] == 1
    assert [one.invalid for one in result.contributions] == [None]
    assert all(torch.equal(tensor, before[name]) for name, tensor in copy_weights(state.model).items())


def test_an_update_of_rows_that_all_mean_nothing_changes_nothing_of_the_state(
    model_folder: Path, policy: LoadedPolicy, tmp_path: Path
) -> None:
    state, store = fresh(model_folder), ArtifactStore(tmp_path)
    before = save(state, store)
    bad = facts(policy, answers=(reference(),), sampler_logprobs=(math.nan,) * len(facts(policy).token_ids))
    result = train(state, batch_of(state, [bad]))
    assert result.untrained == "none of its rows is valid"
    assert [one.lesson_id for one in result.contributions if one.invalid] == [bad.lesson_id]
    assert save(state, store) == before


def test_an_update_that_teaches_something_says_so_and_counts(model_folder: Path, policy: LoadedPolicy) -> None:
    state = fresh(model_folder)
    assert train(state, batch_of(state, group(policy))).untrained is None
    assert state.number == 1


def test_an_update_that_is_stopped_leaves_the_weights_alone(model_folder: Path, policy: LoadedPolicy) -> None:
    state = fresh(model_folder)
    before = copy_weights(state.model)
    with pytest.raises(Stopped):
        make_update(state, batch_of(state, group(policy)), CONFIG, SETTINGS, ALONE, lambda: True)
    assert state.number == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in copy_weights(state.model).items())


def test_every_kind_of_term_is_in_the_ledger_with_its_answers_and_shares_that_sum_to_one(
    model_folder: Path, policy: LoadedPolicy
) -> None:
    state = fresh(model_folder)
    whole = facts(policy, "four", answers=(reference(), answer(expert="teacher", distribution=top_k(4, policy))))
    corrected = replace(
        facts(policy, "2+2=5!", index=1, answers=(answer(expert="human", solution="2+2=4!", corrected=True),)),
        late=True,
    )
    batch = batch_of(state, [whole, corrected])
    sampled: Row = samples(policy, "five", prefixes=[1], continuations=[[{"token_ids": [9]}]])
    result = train(state, Batch((*batch.rows, sampled), {}))
    assert set(terms_of(result)) == set(TermKind) - {TermKind.SCORE}
    terms = [term for one in result.contributions for term in one.terms]
    assert sum(term.share for term in terms) == pytest.approx(1)
    assert all(term.answers and term.cost is not None and term.cost > 0 for term in terms)
    [conditioned] = [term for term in terms if term.kind is TermKind.CONDITIONED]
    assert conditioned.teacher_sha256 == state.base_sha256
    assert conditioned.context_sha256 is not None


def test_a_label_raises_the_persons_token_at_its_place(model_folder: Path, policy: LoadedPolicy) -> None:
    state = fresh(model_folder)
    said = answer(expert="human", solution="2+2=4!", corrected=True)
    lesson = facts(policy, "2+2=5!", answers=(said,), late=True)
    batch = batch_of(state, [lesson])
    costs = []
    for _ in range(5):
        [label] = [t for one in train(state, batch).contributions for t in one.terms if t.kind is TermKind.LABEL]
        costs.append(label.cost)
    assert all(cost is not None for cost in costs)
    assert costs[-1] < costs[0]  # type: ignore[operator]


def test_without_lambda_there_is_no_future_term(model_folder: Path, policy: LoadedPolicy) -> None:
    config = CONFIG.model_copy(update={"lam": 0.0})
    state, credited = fresh(model_folder), fresh(model_folder)
    result = train(state, batch_of(state, group(policy)), config)
    with_future = train(credited, batch_of(credited, group(policy)))
    assert result.metrics["future_share"] == 0
    assert with_future.metrics["future_share"] == 1
    charged = [one.metrics["num_charged_tokens"] for one in (result, with_future)]
    assert charged == [0, 4 + 7 + 5 + 3 + 6 + 2 + 1 + 2], "every token is charged, also with next to nothing"
    assert all(one.future_nonzero for one in with_future.contributions)


def test_sft_makes_the_shown_solution_likelier(model_folder: Path, policy: LoadedPolicy) -> None:
    config = CONFIG.model_copy(update={"objective": "sft"})
    state = fresh(model_folder, config)
    batch = batch_of(state, group(policy))
    losses = [float(str(train(state, batch, config).metrics["imitation"])) for _ in range(5)]
    assert losses[-1] < losses[0]


def test_a_solution_is_learned_at_the_temperature_its_rollout_was_sampled_with(
    model_folder: Path, policy: LoadedPolicy
) -> None:
    config = CONFIG.model_copy(update={"objective": "sft"})
    lesson = facts(policy, "four", answers=(reference("It is 4."),), sampling=Sampling(temperature=0.5))
    state = fresh(model_folder, config)
    loss = float(str(train(state, batch_of(state, [lesson], config), config).metrics["imitation"]))
    said = [*encode_text(policy.tokenizer, "It is 4."), policy.eos_token_ids[0]]
    ids = torch.tensor([[*lesson.prompt_token_ids, *said]])
    with torch.no_grad():
        logits = policy.model(input_ids=ids).logits[0, -len(said) - 1 : -1]
    assert loss == pytest.approx(float(cross_entropy(logits / 0.5, torch.tensor(said))), rel=1e-5)


def test_the_running_mean_of_later_updates_is_made_of_the_costs_to_go_of_this_one(
    model_folder: Path, policy: LoadedPolicy
) -> None:
    state = fresh(model_folder)
    wanted = torch.zeros_like(state.position_mean)
    for _ in range(2):
        result = train(state, batch_of(state, group(policy)))
        to_go = torch.zeros(len(ANSWERS), len(wanted))
        for row, one in zip(to_go, result.contributions, strict=True):
            costs = torch.tensor(one.token_costs)
            for step in range(len(costs) - 1):
                row[step] = costs[step + 1 :].mean()
        wanted = 0.9 * wanted + 0.1 * to_go.mean(0)
    assert wanted[0] > 0
    torch.testing.assert_close(state.position_mean, wanted, rtol=1e-4, atol=1e-6)


def scored_group(policy: LoadedPolicy) -> list[LessonFacts]:
    """A group that was shown a reference, with two successes by a verifier's word."""
    return [
        facts(
            policy,
            text,
            index=index,
            answers=(reference("It is 4."), answer(expert="tests", score=float(index in {2, 6}))),
            score=float(index in {2, 6}),
        )
        for index, text in enumerate(ANSWERS)
    ]


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_every_objective_trains_and_says_what_it_did(model_folder: Path, policy: LoadedPolicy, objective: str) -> None:
    config = TrainerConfig.model_validate({"objective": objective, "lora_r": 4, "lam": 0.5, "learning_rate": 3e-3})
    state = fresh(model_folder, config)
    batch = batch_of(state, scored_group(policy), config)
    results = [train(state, batch, config) for _ in range(3)]
    assert all(result.untrained is None for result in results)
    metrics = results[0].metrics
    assert metrics[f"loss_{objective}"] == pytest.approx(metrics["loss"])
    assert any(name.startswith("loss_") and name != f"loss_{objective}" for name in metrics) is False
    terms = [term for one in results[0].contributions for term in one.terms]
    assert sum(term.share for term in terms) == pytest.approx(1)
    assert all(term.answers for term in terms)
    kinds = {"grpo": TermKind.SCORE, "maxrl": TermKind.SCORE, "sft": TermKind.IMITATION, "rft": TermKind.IMITATION}
    assert {term.kind for term in terms} == {kinds.get(objective, TermKind.CONDITIONED)}
    if objective not in ("grpo", "maxrl", "distil", "paper"):  # whose value is no measure of progress
        assert float(str(results[-1].metrics["loss"])) < float(str(metrics["loss"]))


def test_a_mix_is_the_weighted_sum_of_its_objectives_each_logged_by_itself(
    model_folder: Path, policy: LoadedPolicy
) -> None:
    losses = {}
    for objective, mix in (("distil", {}), ("grpo", {}), ("sft", {}), ("distil", {"grpo": 0.3, "sft": 2.0})):
        config = CONFIG.model_copy(update={"objective": objective, "mix": mix})
        state = fresh(model_folder, config)
        losses[objective, bool(mix)] = train(state, batch_of(state, scored_group(policy), config), config)
    alone = {name: float(str(losses[name, False].metrics["loss"])) for name in ("distil", "grpo", "sft")}
    mixed = losses["distil", True].metrics
    assert mixed["loss_distil"] == pytest.approx(alone["distil"], rel=1e-5)
    assert mixed["loss_grpo"] == pytest.approx(0.3 * alone["grpo"], abs=1e-6)
    assert mixed["loss_sft"] == pytest.approx(2 * alone["sft"], rel=1e-5)
    assert mixed["loss"] == pytest.approx(alone["distil"] + 0.3 * alone["grpo"] + 2 * alone["sft"], rel=1e-5)
    assert set(terms_of(losses["distil", True])) == {TermKind.CONDITIONED, TermKind.SCORE, TermKind.IMITATION}


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_the_fused_update_is_the_plain_one(model_folder: Path, policy: LoadedPolicy, objective: str) -> None:
    ended = []
    for fused in (True, False):
        config = CONFIG.model_copy(update={"objective": objective, "fused": fused, "student_top_k": 5})
        state = fresh(model_folder, config)
        metrics = train(state, batch_of(state, scored_group(policy), config), config).metrics
        ended.append((metrics, copy_weights(state.model)))
    (fused_metrics, fused_weights), (plain_metrics, plain_weights) = ended
    for name, value in plain_metrics.items():
        assert fused_metrics[name] == pytest.approx(value, abs=1e-5)
    # Adam's first step has nearly the size of the learning rate whatever the gradient: compare where that is not tiny
    for name, tensor in plain_weights.items():
        assert (fused_weights[name] - tensor).abs().mean() < 1e-5


def test_rollouts_without_a_score_are_counted_and_give_grpo_nothing(model_folder: Path, policy: LoadedPolicy) -> None:
    config = CONFIG.model_copy(update={"objective": "grpo"})
    state = fresh(model_folder, config)
    lessons = scored_group(policy)
    lessons[3] = replace(lessons[3], score=None)
    result = train(state, batch_of(state, lessons, config), config)
    assert result.metrics["num_rows_unscored"] == result.metrics["num_rows_unused"] == 1
    assert [len(one.terms) for one in result.contributions] == [1, 1, 1, 0, 1, 1, 1, 1]
    agreed = [replace(lesson, score=0.0) for lesson in lessons]
    assert train(state, batch_of(state, agreed, config), config).untrained == "its gradient was zero"


def test_a_context_an_expert_and_contexts_on_spans_are_terms_of_their_own(
    model_folder: Path, policy: LoadedPolicy
) -> None:
    config = CONFIG.model_copy(update={"contexts": "per_expert"})
    state = fresh(model_folder, config)
    on_span = answer(expert="critic", feedback=Feedback(spans=[FeedbackSpan(start=1, end=3, text="no")]))
    lesson = facts(policy, "2+2=5!", answers=(reference(), answer(feedback=Feedback(text="wrong")), on_span))
    [one] = train(state, batch_of(state, [lesson], config), config).contributions
    assert [(term.sources, term.num_tokens) for term in one.terms] == [
        (["reference@1"], 6),
        (["judge@1"], 6),
        (["critic@1"], 2),
    ]
    assert len({term.context_sha256 for term in one.terms}) == 3


def test_a_frozen_teacher_never_moves_and_a_moving_average_does(model_folder: Path, policy: LoadedPolicy) -> None:
    frozen, moving = fresh(model_folder), fresh(model_folder, CONFIG.model_copy(update={"teacher_ema": 0.5}))
    assert frozen.average is None
    train(frozen, batch_of(frozen, group(policy)))
    assert make_teacher(frozen.average, frozen.base_sha256).sha256 == frozen.base_sha256
    before = copy_weights(moving.model)
    config = CONFIG.model_copy(update={"teacher_ema": 0.5})
    train(moving, batch_of(moving, group(policy)), config)
    after = copy_weights(moving.model)
    assert moving.average is not None
    for name, tensor in moving.average.items():
        assert torch.allclose(tensor, (before[name] + after[name]) / 2)


def test_what_is_published_is_the_weights_or_their_moving_average(model_folder: Path, policy: LoadedPolicy) -> None:
    config = CONFIG.model_copy(update={"publish_average": 0.25})
    plain, averaged = fresh(model_folder), fresh(model_folder, config)
    assert plain.published is None
    before = copy_weights(averaged.model)
    train(averaged, batch_of(averaged, group(policy)), config)
    first = copy_weights(averaged.model)
    train(averaged, batch_of(averaged, group(policy)), config)
    second = copy_weights(averaged.model)
    with averaged.as_published():
        published = copy_weights(averaged.model)
    moved = False
    for name, tensor in published.items():
        assert torch.allclose(tensor, before[name] * 9 / 16 + first[name] * 3 / 16 + second[name] * 4 / 16, atol=1e-6)
        moved |= not torch.allclose(tensor, second[name])
    assert moved
    assert all(torch.equal(tensor, second[name]) for name, tensor in copy_weights(averaged.model).items())
    for _ in range(2):
        train(plain, batch_of(plain, group(policy)))
    with plain.as_published():
        assert all(torch.equal(tensor, second[name]) for name, tensor in copy_weights(plain.model).items())


def test_the_teacher_scores_as_the_base_would_under_its_context(model_folder: Path, policy: LoadedPolicy) -> None:
    state = fresh(model_folder)
    for _ in range(2):
        train(state, batch_of(state, group(policy)))
    [row] = batch_of(state, [facts(policy, "four", answers=(reference(),))]).rows
    [context] = row.contexts
    ids = torch.tensor([row.token_ids])
    teacher = make_teacher(state.average, state.base_sha256)
    exists = torch.ones_like(ids, dtype=torch.bool)
    hidden = read_under_contexts(state.model, teacher, [context], ids, exists)
    expert = read_teacher(state.model, hidden, temperature=0.5, fused=False)
    assert isinstance(expert, FullVocabulary)
    with torch.no_grad():
        plain = policy.model(torch.tensor([[*context.prompt_ids, *row.token_ids]])).logits
    start = len(context.prompt_ids) - 1
    expected = (plain[0, start : start + len(row.token_ids)] / 0.5).log_softmax(-1)
    assert torch.allclose(expert.logprobs[0], expected, atol=1e-4)


def test_other_weights_are_put_back_even_after_an_error(model_folder: Path) -> None:
    state = fresh(model_folder)
    own = copy_weights(state.model)
    others = {name: torch.ones_like(tensor) for name, tensor in own.items()}
    with pytest.raises(RuntimeError), with_weights(state.model, others):
        raise RuntimeError
    assert all(torch.equal(tensor, own[name]) for name, tensor in copy_weights(state.model).items())


def test_a_restored_checkpoint_continues_bit_for_bit(model_folder: Path, policy: LoadedPolicy, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"teacher_ema": 0.1, "publish_average": 0.3})
    store = ArtifactStore(tmp_path)
    whole, resumed = fresh(model_folder, config), fresh(model_folder, config)
    batch = batch_of(whole, group(policy))
    train(whole, batch, config)
    middle = save(whole, store)
    train(whole, batch, config)
    restore(resumed, store, middle, config)
    assert save(resumed, store) == middle
    train(resumed, batch, config)
    assert save(resumed, store) == save(whole, store)


def test_a_checkpoint_that_names_its_base_by_the_former_hash_is_taken(
    model_folder: Path, policy: LoadedPolicy, tmp_path: Path
) -> None:
    store, state = ArtifactStore(tmp_path), fresh(model_folder)
    address = save(replace(state, base_sha256=policy.former_sha256), store)
    restore(state, store, address, CONFIG)
    with pytest.raises(CheckpointDiffers):
        restore(replace(state, base_names=frozenset({"0" * 64})), store, address, CONFIG)


def test_an_average_to_publish_begins_with_the_weights_of_a_checkpoint_that_has_none_and_is_left_where_none_is_wanted(
    model_folder: Path, policy: LoadedPolicy, tmp_path: Path
) -> None:
    store, config = ArtifactStore(tmp_path), CONFIG.model_copy(update={"publish_average": 0.3})
    plain, averaged = fresh(model_folder), fresh(model_folder, config)
    train(plain, batch_of(plain, group(policy)))
    own = copy_weights(plain.model)
    restore(averaged, store, save(plain, store), config)
    assert averaged.published is not None
    assert all(torch.equal(tensor, own[name]) for name, tensor in averaged.published.items())
    train(averaged, batch_of(averaged, group(policy)), config)
    restore(plain, store, save(averaged, store), CONFIG)
    assert plain.published is None


def test_a_checkpoint_of_another_shape_or_teacher_is_refused(model_folder: Path, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    address = save(fresh(model_folder), store)
    wider = CONFIG.model_copy(update={"lora_r": 8})
    with pytest.raises(CheckpointDiffers):
        restore(fresh(model_folder, wider), store, address, wider)
    moving = CONFIG.model_copy(update={"teacher_ema": 0.1})
    with pytest.raises(CheckpointDiffers):
        restore(fresh(model_folder, moving), store, address, moving)


def test_only_the_named_checkpoints_are_kept(model_folder: Path, policy: LoadedPolicy, tmp_path: Path) -> None:
    store, state = ArtifactStore(tmp_path), fresh(model_folder)
    first = save(state, store)
    train(state, batch_of(state, group(policy)))
    second = save(state, store)
    (tmp_path / ".saving-crashed").mkdir()
    prune(store, [second])
    assert [entry.name for entry in tmp_path.iterdir()] == [second]
    assert not store.contains(first)


def test_nobody_sees_half_of_a_checkpoint_that_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore(tmp_path / "checkpoints")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "tensors").write_text("many")
    address = store.store(tmp_path / "weights")
    seen: list[bool] = []
    delete = shutil.rmtree

    def look(path: Path, *, ignore_errors: bool) -> None:
        if path.exists():
            seen.append(store.contains(address))
        delete(path, ignore_errors=ignore_errors)

    monkeypatch.setattr("trainer.step.state.shutil.rmtree", look)
    prune(store, [])
    assert seen == [False]
    assert list(store.root.iterdir()) == []


def test_what_the_teacher_drew_trains_the_local_term_and_counts_in_no_rate_score_or_baseline(
    model_folder: Path, policy: LoadedPolicy
) -> None:
    own = [replace(one, answers=(*one.answers, reference())) for one in siblings(policy, solved={2, 5})]
    drawn = [
        replace(facts(policy, text, index=8 + place, answers=(reference(),)), sampler_logprobs=None, shown=True)
        for place, text in enumerate(("It is 4, and that is that.", "4"))
    ]
    config = CONFIG.model_copy(
        update={
            "mix": {"grpo": 0.5, "rft": 0.5},
            "question_weights": "pass_rate",
            "sources": {"*": (ContextSource.REFERENCE,)},
        }
    )
    both, alone = (
        train(fresh(model_folder, config), batch_of(fresh(model_folder, config), lessons, config), config)
        for lessons in ([*own, *drawn], own)
    )
    for name in ("pass_rate", "num_judged", "num_rows_unscored", "stop_rate", "response_tokens", "num_score"):
        assert both.metrics[name] == alone.metrics[name]
    assert (both.metrics["num_rows_rolled_in"], alone.metrics["num_rows_rolled_in"]) == (2, 0)
    theirs = {one.lesson_id: one for one in both.contributions if one.lesson_id in {row.lesson_id for row in drawn}}
    for one in theirs.values():
        assert (one.baseline_group, one.future_nonzero) == (None, False)
        assert [term.kind for term in one.terms] == [TermKind.CONDITIONED]
        assert one.terms[0].source is ContextSource.REFERENCE


def test_a_rollout_of_the_teacher_changes_no_siblings_baseline_and_no_running_mean(
    model_folder: Path, policy: LoadedPolicy
) -> None:
    own = [facts(policy, text, index=place, answers=(reference(),)) for place, text in enumerate(("four", "it is 4"))]
    theirs = replace(facts(policy, "five or six", index=2, answers=(reference(),)), sampler_logprobs=None, shown=True)
    futures, means = [], []
    for lessons in (own, [*own, theirs]):
        state = fresh(model_folder)
        result = train(state, batch_of(state, lessons))
        futures.append(float(str(result.metrics["future"])) * sum(len(one.token_ids) for one in lessons))
        means.append(state.position_mean)
    assert torch.allclose(means[0], means[1], atol=1e-6)
    assert futures[0] == pytest.approx(futures[1], rel=1e-4)
    assert abs(futures[0]) > 1e-4
