"""The loss of a micro-batch: what each objective is given of the plan and the settings, and what it reads."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from services.contracts.answers import Feedback, FeedbackSpan, SamplesDistribution
from services.contracts.ids import new_id
from services.policy.model.modeling import LoadedPolicy, find_backbone, load_policy
from services.runtime.settings import Settings
from services.store.ledger.lesson_facts import LessonFacts
from tests.trainer.batch.test_build import top_k
from tests.trainer.world import REFERENCE_ALONE, TAUGHT_BY_ALL, answer, facts, reference
from trainer.batch.build import build_batch
from trainer.batch.rows import Row
from trainer.config import TrainerConfig
from trainer.objectives.account import Account
from trainer.step.compose import Composer
from trainer.step.plan import make_plan
from trainer.step.state import TrainerState, begin
from trainer.step.teacher import make_teacher

UNCLIPPED: dict[str, object] = {"lora_r": 4, "lam": 0.5, "clip": 1e6, **REFERENCE_ALONE}


@pytest.fixture(scope="module")
def state(model_folder: Path) -> TrainerState:
    """A fresh adapter changes nothing: the student is the sampler, and every ratio is 1. For reading only."""
    return begin(load_policy(model_folder), TrainerConfig(lora_r=4))


def rows_of(state: TrainerState, lessons: Sequence[LessonFacts], config: TrainerConfig) -> tuple[Row, ...]:
    return build_batch(
        lessons, TAUGHT_BY_ALL, state.tokenizer, state.vocabulary, config, Settings(), newest_version=0
    ).rows


def compose(state: TrainerState, rows: Sequence[Row], config: TrainerConfig) -> tuple[Account, float]:
    """The account of one micro-batch of all the rows, and its loss."""
    plan = make_plan(rows, config)
    teacher = make_teacher(state.average, state.base_sha256)
    account = Account()
    usable = [row for row in rows if plan.uses(row)]
    losses = list(Composer(state, teacher, plan, config, 0.5).losses(usable, account))
    return account, sum(float(loss.detach()) for loss in losses)


def configure(**settings: object) -> TrainerConfig:
    return TrainerConfig.model_validate(UNCLIPPED | settings)


def pair(policy: LoadedPolicy) -> list[LessonFacts]:
    """Two siblings under a reference."""
    return [facts(policy, text, index=index, answers=(reference(),)) for index, text in enumerate(("four", "no"))]


def weigh(rows: Sequence[Row], charges: Sequence[Tensor]) -> float:
    """The future term on-policy: λ times the mean of log π(y_t) times what y_t is charged with."""
    summed = sum(
        float((torch.tensor(row.sampler_logprobs) * charge[: row.num_actions]).sum())
        for row, charge in zip(rows, charges, strict=True)
    )
    return 0.5 * summed / sum(row.num_actions for row in rows)


class TestBaseline:
    @pytest.mark.parametrize("known", [2, 4, 6])
    def test_without_siblings_the_running_mean_of_each_position_is_subtracted_and_zero_where_none_is_known(
        self, state: TrainerState, policy: LoadedPolicy, monkeypatch: pytest.MonkeyPatch, known: int
    ) -> None:
        monkeypatch.setattr(state, "position_mean", torch.arange(1.0, known + 1))
        expected = torch.zeros(4)
        expected[: min(known, 4)] = torch.arange(1.0, known + 1)[:4]
        config = configure()
        one, two = rows_of(state, pair(policy), config)
        rows = one, replace(two, siblings="another group")
        account, _ = compose(state, rows, config)
        charges = [returns - expected for returns in account.returns]
        assert account.sums["future"] == pytest.approx(weigh(rows, charges), rel=1e-4)

    def test_a_siblings_return_is_subtracted_and_the_running_mean_where_no_sibling_is_in_the_half(
        self, state: TrainerState, policy: LoadedPolicy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(state, "position_mean", torch.full((64,), 7.0))
        config = configure()
        one, two = rows_of(state, pair(policy), config)
        account, _ = compose(state, (one, two), config)
        first, second = account.returns
        charges = [first - second, second - first]
        assert account.sums["future"] == pytest.approx(weigh((one, two), charges), rel=1e-4)
        halved, _ = compose(state, (one, replace(two, half=1)), config)
        strangers, _ = compose(state, (one, replace(two, siblings="another group")), config)
        for apart in (halved, strangers):
            charges = [returns - 7 for returns in apart.returns]
            assert apart.sums["future"] == pytest.approx(weigh((one, two), charges), rel=1e-4)


class TestSettings:
    @pytest.mark.parametrize("setting", [{"lam": 1.0}, {"clip": 0.01}])
    def test_every_setting_of_the_credit_reaches_the_future_term_and_it_alone(
        self, state: TrainerState, policy: LoadedPolicy, setting: dict[str, object]
    ) -> None:
        before, after = configure(), configure(**setting)
        rows = rows_of(state, pair(policy), before)
        (plain, _), (changed, _) = compose(state, rows, before), compose(state, rows, after)
        assert changed.sums["local"] == plain.sums["local"]
        assert abs(changed.sums["future"] - plain.sums["future"]) > 1e-3 * abs(plain.sums["future"])

    @pytest.mark.parametrize("setting", [{"objective": "forward_ce"}, {"lam": 0.0}])
    def test_forward_ce_and_a_lambda_of_zero_are_distil_without_its_future_term(
        self, state: TrainerState, policy: LoadedPolicy, setting: dict[str, object]
    ) -> None:
        config, plain = configure(**setting), configure()
        rows = rows_of(state, pair(policy), config)
        (account, loss), (distil, _) = compose(state, rows, config), compose(state, rows, plain)
        assert account.sums["future"] == 0
        assert loss == pytest.approx(account.sums["local"]) == pytest.approx(distil.sums["local"])
        assert not account.future
        assert not account.returns, "the running mean is made of returns that were computed"

    @pytest.mark.parametrize(("setting", "values"), [("sdpo_alpha", (0.0, 0.5, 1.0)), ("student_top_k", (1, 3, 9))])
    def test_sdpos_alpha_and_top_k_change_what_it_descends(
        self, state: TrainerState, policy: LoadedPolicy, setting: str, values: tuple[object, ...]
    ) -> None:
        losses = set()
        for value in values:
            config = configure(**{"objective": "sdpo", "student_top_k": 5} | {setting: value})
            losses.add(round(compose(state, rows_of(state, pair(policy), config), config)[1], 7))
        assert len(losses) == 3

    def test_imitating_the_rest_of_a_correction_has_a_share_of_its_own(
        self, state: TrainerState, policy: LoadedPolicy
    ) -> None:
        said = answer(expert="human", solution="2+2=4!!", corrected=True)
        lesson = facts(policy, "2+2=5!", answers=(said,), late=True)
        losses = {}
        for share in (0.1, 0.5):
            config = configure(imitation_share=share)
            account, _ = compose(state, rows_of(state, [lesson], config), config)
            losses[share] = account.sums["imitation"]
            [term] = [term for terms in account.terms.values() for term in terms if term.kind == "imitation"]
            assert term.cost is not None
            assert account.sums["imitation"] == pytest.approx(share * term.cost)  # the mean over its own tokens
        assert losses[0.5] == pytest.approx(5 * losses[0.1])


@pytest.fixture
def lessons(policy: LoadedPolicy) -> list[LessonFacts]:
    """A reference; a remote top-K and a success; a failure; nothing at all; a span; drawn places; a correction."""
    said = Feedback(spans=[FeedbackSpan(start=0, end=2, text="no")])
    asked = SamplesDistribution.model_validate(
        {"tokenizer_hash": policy.tokenizer_hash, "prefixes": [1], "continuations": [[{"token_ids": [9]}]]}
    )
    return [
        facts(policy, "four", index=0, answers=(reference(),), score=0.0),
        facts(policy, "five!", index=1, answers=(answer(distribution=top_k(5, policy)),), score=1.0),
        facts(policy, "no", index=2, score=0.0),
        facts(policy, "2", index=3),
        facts(policy, "4 or 5", index=4, answers=(answer(feedback=said),)),
        facts(policy, "4 or 5 or", index=5, answers=(answer(expert="oracle", distribution=asked),)),
        facts(policy, "2+2=5!!!!!!", answers=(answer(solution="2+2=4!", corrected=True),), late=True),
    ]


class TestReading:
    @pytest.mark.parametrize(
        ("objective", "num_actions"),
        [
            ("distil", 4 + 5 + 6 + 9 + 11),
            ("forward_ce", 4 + 5 + 6 + 9 + 11),
            ("paper", 4),
            ("sdpo", 4),
            ("reverse_kl", 4),
            ("grpo", 4 + 5 + 2),
            ("maxrl", 4 + 5 + 2),
            ("rft", 5),
            ("sft", None),
        ],
    )
    def test_only_rollouts_that_an_objective_looks_at_are_read(
        self, state: TrainerState, lessons: list[LessonFacts], objective: str, num_actions: int | None
    ) -> None:
        config = configure(objective=objective)
        account, _ = compose(state, rows_of(state, lessons, config), config)
        assert account.sums.get("num_actions") == num_actions

    def test_a_mix_reads_each_rollout_once(self, state: TrainerState, lessons: list[LessonFacts]) -> None:
        config = configure(objective="distil", mix={"sdpo": 1.0, "grpo": 1.0, "rft": 1.0, "sft": 1.0})
        account, _ = compose(state, rows_of(state, lessons, config), config)
        assert account.sums["num_actions"] == 4 + 5 + 2 + 6 + 9 + 11

    def test_every_objective_of_a_mix_gives_what_it_gives_alone_times_its_weight(
        self, state: TrainerState, lessons: list[LessonFacts]
    ) -> None:
        weights: dict[str, float] = {
            **{"forward_ce": 0.5, "paper": 0.25, "sdpo": 2.0, "reverse_kl": 3.0},
            **{"grpo": 0.1, "maxrl": 0.2, "sft": 0.3, "rft": 0.4},
        }
        mixed = configure(objective="distil", mix=weights)
        account, total = compose(state, rows_of(state, lessons, mixed), mixed)
        summed = 0.0
        for name, weight in {"distil": 1.0, **weights}.items():
            alone = configure(objective=name)
            own, loss = compose(state, rows_of(state, lessons, alone), alone)
            assert account.sums[f"loss_{name}"] == pytest.approx(weight * own.sums[f"loss_{name}"], abs=1e-6)
            assert abs(own.sums[f"loss_{name}"]) > 1e-3
            assert own.sums[f"loss_{name}"] == pytest.approx(loss, rel=1e-5)
            summed += weight * loss
        assert total == pytest.approx(summed, rel=1e-5)

    def test_a_solution_that_siblings_share_is_read_once_and_counts_for_each_by_its_trust(
        self, state: TrainerState, policy: LoadedPolicy
    ) -> None:
        trusts = (1.0, 3.0)
        told = [
            facts(policy, text, index=index, answers=(replace(reference(), weight=trust),))
            for index, (text, trust) in enumerate(zip(("four", "no"), trusts, strict=True))
        ]
        apart = [replace(told[1], group_id=new_id())]  # another group, whose text is read by itself
        config = configure(objective="sft")
        rows, alone = rows_of(state, told, config), rows_of(state, [*told[:1], *apart], config)
        lengths = list[torch.Size]()
        watch = find_backbone(state.model).register_forward_pre_hook(
            lambda _, __, given: lengths.append(given["input_ids"].shape), with_kwargs=True
        )
        account, loss = compose(state, rows, config)
        watch.remove()
        assert [shape[0] for shape in lengths] == [1, 1], "the prompt, and the one text"
        assert loss == pytest.approx(compose(state, alone, config)[1], rel=1e-5)
        shares = [account.terms[row.lesson_id][0].share for row in rows]
        assert shares == pytest.approx([loss / 4, 3 * loss / 4], rel=1e-5)

    def test_a_solution_and_a_success_are_imitated_under_their_own_names(
        self, state: TrainerState, lessons: list[LessonFacts]
    ) -> None:
        config = configure(objective="sft", mix={"rft": 1.0})
        rows = rows_of(state, lessons, config)
        account, _ = compose(state, rows, config)
        assert [term.sources for term in account.terms[rows[0].lesson_id]] == [["reference@1"]]
        assert [term.sources[0] for term in account.terms[rows[1].lesson_id]] == ["the policy's own success"]
        assert set(account.terms) == {rows[0].lesson_id, rows[1].lesson_id}
