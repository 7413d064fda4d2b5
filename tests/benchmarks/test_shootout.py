"""The shoot-out: its worlds, a run, that nothing is run twice, what the report says, and the whole in small."""

import json
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks import learn
from benchmarks.shootout import pretrain
from benchmarks.shootout.questions import Question
from benchmarks.shootout.report import ArmResults, Section, name_clock, write_report
from benchmarks.shootout.results import ByTemperature, Results, Run, Tuning
from benchmarks.shootout.runs import (
    Answerer,
    Arm,
    Budget,
    Gap,
    Measured,
    Plan,
    Point,
    Setting,
    ask_in_turn,
    measure_start,
    swap_solutions,
    teach,
    train,
)
from benchmarks.shootout.synthetic import Doubted, Fork, Rules, Synthetic, Unheard, apply_rules
from services.contracts.answers import SamplesDistribution
from services.contracts.tasks import Message, Split
from services.policy.model.modeling import load_policy, prefill_prompt, score_responses
from services.policy.model.tiny import make_tiny_policy
from tests.waiting import wait_until
from trainer.config import TrainerConfig
from trainer.step.state import begin

DISTIL = Arm(name="distil", objective="distil")
GRPO = Arm(name="grpo", objective="grpo", has_teacher=False)
SETTING = Setting(learning_rate=1e-3, teacher_temperature=1.0)
BUDGET = Budget(updates=2, groups=2, group_size=4, measure_every=1, samples=8, tasks=8)
BASE = "a" * 64


def make_plan(arm: Arm = DISTIL, seed: int = 0, rate: float = 1e-3, policy: str = "here") -> Plan:
    setting = Setting(learning_rate=rate, teacher_temperature=1.0)
    return Plan(world="fork", arm=arm, setting=setting, seed=seed, split=Split.HELDOUT, budget=BUDGET, policy=policy)


def make_point(update: int, seconds: float, pass_1: float, families: dict[str, float] | None = None) -> Point:
    """Greedy and at 1 half as good as at .5, where pass@1 is as given; pass@8 is that at every temperature but 0."""
    own = families or {"f": pass_1}

    def at(temperature: float, factor: float) -> Measured:
        return Measured(
            temperature=temperature,
            families={family: factor * value for family, value in own.items()},
            families_8=own if temperature else {},
            pass_1=factor * pass_1,
            pass_8=pass_1 if temperature else None,
            tokens=5,
            stopped=1,
        )

    measured = (at(0.0, 0.5), at(0.25, 0.75), at(0.5, 1.0), at(1.0, 0.5))
    return Point(update=update, seconds=seconds, measured=measured, entropy=0.5, kl_base=0.1)


def make_run(plan: Plan, *pass_1: float, seconds: float = 10.0) -> Run:
    points = [make_point(update, update * seconds, value) for update, value in enumerate(pass_1)]
    return Run(
        plan=plan,
        base_sha256=BASE,
        commit="abc1234",
        machine="Two cores, torch 2",
        curve=tuple(points),
        num_untrained=0,
        num_invalid=0,
        num_charged=8,
        num_clipped=2,
    )


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random policy that reads the synthetic worlds' questions."""
    folder = make_tiny_policy(tmp_path_factory.mktemp("shootout") / "policy")
    policy = load_policy(folder)
    policy.tokenizer.chat_template = pretrain.TEMPLATE
    policy.tokenizer.save_pretrained(folder)
    return folder


# --- the worlds ---


def test_a_letter_of_the_rules_world_is_a_number_that_is_added_without_carrying() -> None:
    assert apply_rules("ab3142") == "142264"
    assert apply_rules("fa9900") == "655111"


@pytest.mark.parametrize("world", [Rules(), Fork(), Unheard(), Doubted()])
def test_no_family_of_a_world_is_in_two_splits(world: Synthetic) -> None:
    families = [{question.family for question in world.questions(split)} for split in Split]
    assert sum(map(len, families)) == len(set.union(*families))


def test_both_ways_of_the_fork_world_are_right_and_nothing_else_is() -> None:
    world = Fork()
    question = world.questions(Split.HELDOUT)[0]
    digits = question.messages[0].content
    answers = [question.solution, "a" + digits[::-1], "a" + digits, "b", ""]
    assert world.judge([(question, answer) for answer in answers]) == [1, 1, digits == digits[::-1], 0, 0]


@pytest.mark.parametrize("world", [Rules(), Fork()])
def test_the_untrained_policy_is_taught_to_answer_right_sometimes_and_not_always(world: Rules | Fork) -> None:
    lessons = world.lessons(random.Random(0))
    taught = [(turn.question, turn.answer) for turn in (next(lessons)[0] for _ in range(400))]

    def ask(question: str) -> Question:
        return Question(
            "any", "any", "any", (Message(role="user", content=question),), apply_rules_or_nothing(question)
        )

    rate = sum(world.judge([(ask(question), answer)])[0] for question, answer in taught) / len(taught)
    assert 0.1 < rate < 0.6


def apply_rules_or_nothing(question: str) -> str:
    return apply_rules(question) if len(question) == 6 else "nothing"


def test_questions_come_in_an_order_of_the_seed_and_each_before_any_comes_again() -> None:
    questions = Fork().questions(Split.VALIDATION)
    asked = ask_in_turn(questions, 8, seed=3)
    keys = [question.key for _ in range(4) for question in next(asked)]
    again = ask_in_turn(questions, 8, seed=3)
    assert sorted(keys) == sorted(question.key for question in questions)
    assert keys == [question.key for _ in range(4) for question in next(again)]


def test_the_control_is_shown_the_solution_of_another_task_and_judged_by_its_own(untrained: Path) -> None:
    world = Rules()
    questions = world.questions(Split.TRAIN)[::30]
    families = {question.solution: question.family for question in questions}
    told = swap_solutions(questions, [question.solution for question in questions])
    assert all(families[str(theirs)] != ours.family for ours, theirs in zip(questions, told, strict=True))
    answerer = Answerer(load_policy(untrained).model, load_policy(untrained), world)
    drawn = answerer.draw(questions, 2, "any")
    for other in (False, True):
        plan = make_plan(DISTIL.model_copy(update={"other_feedback": other}))
        for lesson in teach(drawn, answerer, 1, plan):
            shown = {answer.solution for answer in lesson.answers} - {None}
            own = next(q.solution for q in questions if q.messages == lesson.messages)
            assert (own in shown) is not other
            assert lesson.score == float(lesson.text == own)


def test_the_control_prefers_another_solution_to_another_family() -> None:
    def swap(*asked: tuple[str, str], hidden: int | None = None) -> list[str | None]:
        questions = [Question(str(at), family, "any", (), solution) for at, (family, solution) in enumerate(asked)]
        return swap_solutions(questions, [None if at == hidden else f"{at}" for at in range(len(asked))])

    assert swap(("f", "A"), ("g", "A"), ("h", "B")) == ["2", "2", "0"]
    assert swap(("f", "A"), ("f", "B"), ("g", "A")) == ["1", "2", "1"]
    assert swap(("f", "A"), ("f", "A"), ("g", "A")) == ["2", "2", "0"]
    assert swap(("f", "A"), ("g", "B"), ("h", "C"), hidden=1) == ["2", "2", "0"]
    assert swap(("f", "A")) == [None]


class TestDecision:
    @pytest.mark.parametrize("world", [Unheard(), Doubted()])
    def test_the_policy_is_taught_the_right_code_at_the_given_mass_and_to_repeat_what_is_shown(
        self, world: Unheard | Doubted
    ) -> None:
        right = {q.messages[0].content[0]: q.solution for q in world.questions(Split.TRAIN)}
        assert sorted(right) == list("abcdef")
        lessons = world.lessons(random.Random(0))
        alone, followed = list[bool](), list[bool]()
        for turns in (next(lessons) for _ in range(40_000)):
            if len(turns) == 1:
                alone.append(turns[0].answer == right[turns[0].question[0]])
            else:
                assert not turns[0].is_learned
                followed.append(turns[0].answer == turns[1].answer)
        assert sum(alone) / len(alone) == pytest.approx(world.mass, rel=0.5)
        assert sum(followed) / len(followed) > 0.96

    def test_a_mistaken_expert_believes_another_code_for_three_tasks_in_ten(self) -> None:
        questions = Unheard().questions(Split.TRAIN)
        wrong = [question for question in questions if question.believed != question.solution]
        assert 0.2 < len(wrong) / len(questions) < 0.4
        assert {question.believed for question in wrong} <= set("ghijklmn")

    def test_a_mistaken_expert_shows_and_scores_by_what_it_believes(self, coder: Answerer) -> None:
        [wrong] = [q for q in Unheard().questions(Split.TRAIN) if q.believed != q.solution][:1]
        drawn = coder.draw([wrong], 8, "any")
        for expert, told in (("exact", wrong.solution), ("mistaken", wrong.believed)):
            arm = DISTIL.model_copy(update={"expert": expert})
            for lesson in teach(drawn, coder, 1, make_plan(arm)):
                assert {answer.solution for answer in lesson.answers} == {told, None}
                assert lesson.score == float(lesson.text == told)

    def test_an_expert_that_only_draws_gives_one_token_at_every_place_as_often_as_the_teacher_has_it(
        self, coder: Answerer
    ) -> None:
        question = Unheard().questions(Split.TRAIN)[0]
        [drawn] = coder.draw([question], 256, "any")
        plan = make_plan(DISTIL.model_copy(update={"expert": "samples"}))
        first = Counter[int]()
        for lesson in teach([drawn], coder, 1, plan):
            [distribution] = [a.distribution for a in lesson.answers if a.distribution is not None]
            assert isinstance(distribution, SamplesDistribution)
            assert distribution.prefixes == list(range(len(lesson.token_ids)))
            assert all(a.solution is None for a in lesson.answers)
            [token] = distribution.continuations[0][0].token_ids or []
            first[token] += 1
        [shown] = coder.draw([question], 256, "other", shown=[question.solution])
        expected = Counter(sample.token_ids[0] for sample in shown.samples)
        likeliest, count = expected.most_common(1)[0]
        assert first[likeliest] / 256 == pytest.approx(count / 256, abs=0.15)


@pytest.fixture(scope="module")
def coder(untrained: Path) -> Answerer:
    """A random policy in training, which answers the world `unheard`."""
    policy = load_policy(untrained)
    return Answerer(begin(policy, TrainerConfig()).model, policy, Unheard())


# --- a run ---


def test_answers_are_drawn_with_the_weights_that_are_followed(untrained: Path) -> None:
    policy = load_policy(untrained)
    state = begin(policy, TrainerConfig())
    answerer = Answerer(state.model, policy, Rules())
    questions = Rules().questions(Split.TRAIN)[:3]
    of_base = answerer.draw(questions, 5, "any")
    for name, parameter in state.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    assert answerer.draw(questions, 5, "any") == of_base
    answerer.follow()
    drawn = answerer.draw(questions, 5, "any")
    for one in drawn:
        prefill = prefill_prompt(state.model, torch.tensor(one.prompt_ids))
        for sample in one.samples:
            ids = torch.tensor([sample.token_ids])
            scored = score_responses(state.model, prefill, ids, torch.ones_like(ids, dtype=torch.bool))
            assert torch.allclose(scored.logprobs[0], torch.tensor(sample.logprobs), atol=1e-4)
    _, kl_base = answerer.read_again(drawn)
    assert kl_base > 0.01


def test_a_run_begins_at_the_base_and_the_same_plan_gives_the_same_curve(untrained: Path) -> None:
    plan = make_plan(policy=str(untrained))
    first, second = train(plan, Fork()).curve, train(plan, Fork()).curve
    assert [point.update for point in first] == [0, 1, 2]
    assert first[0].kl_base == pytest.approx(0, abs=1e-5)
    assert first[-1].kl_base > 1e-4
    assert [p.model_copy(update={"seconds": 0}) for p in first] == [p.model_copy(update={"seconds": 0}) for p in second]


def test_what_a_run_begins_with_is_measured_once_for_all_arms(tmp_path: Path, untrained: Path) -> None:
    small = {"budget": BUDGET.model_copy(update={"groups": 1, "group_size": 2, "tasks": 2})}
    ours = make_plan(policy=str(untrained)).model_copy(update=small)
    other_seed = make_plan(policy=str(untrained), seed=1).model_copy(update=small)
    theirs = make_plan(GRPO, rate=5e-3, policy=str(untrained)).model_copy(update=small)
    point = train(ours, Fork()).curve[0]
    assert measure_start(theirs, Fork()) == point
    assert measure_start(other_seed, Fork()) != point
    told = point.model_copy(update={"entropy": 0.123})
    assert train(theirs, Fork(), told).curve[0] == told
    results = Results(tmp_path / "runs.jsonl", {"fork": BASE})
    results.add(make_run(ours, 0.25, 0.5))
    assert results.starts()[theirs.start].at(0.5).pass_1 == 0.25
    assert other_seed.start not in results.starts()


# --- results ---


def test_what_was_run_is_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    results = Results(path, {"fork": BASE})
    results.add(make_run(make_plan(seed=0), 0.1, 0.5))
    with path.open("a") as file:
        file.write('{"plan": {"world"')  # killed while writing
    again = Results(path, {"fork": BASE})
    wanted = [make_plan(seed=seed, policy="elsewhere") for seed in range(2)]
    assert [plan.seed for plan in again.missing(wanted)] == [1]
    assert [run.plan.seed for run in again.runs(wanted)] == [0]
    again.add(make_run(make_plan(seed=1), 0.1, 0.5))
    assert Results(path, {"fork": BASE}).missing(wanted) == []
    assert Results(path, {"fork": "b" * 64}).missing(wanted) == wanted, "runs of another base policy do not count"


def test_the_setting_with_the_best_mean_over_seeds_at_its_best_temperature_is_chosen(tmp_path: Path) -> None:
    results = Results(tmp_path / "runs.jsonl", {"fork": BASE})
    plans = [make_plan(seed=seed, rate=rate) for rate in (1e-3, 2e-3) for seed in (0, 1)]
    for plan, end in zip(plans, (0.5, 0.6, 0.9, 0.1), strict=True):
        results.add(make_run(plan, 0.1, end))
    tuning = results.tune(plans)
    first, second = tuning.settings.values()
    assert list(first.pass_1.values()) == pytest.approx([0.275, 0.4125, 0.55, 0.275])
    assert first.pass_8 == pytest.approx({0.25: 0.55, 0.5: 0.55, 1.0: 0.55})
    assert second.pass_1[0.5] == pytest.approx(0.5)
    assert tuning.best == plans[0].setting
    assert (first.best, first.best_8) == (0.5, 0.25), "the lowest of temperatures that are equally good"
    assert tuning.best_at(2e-3) == plans[2].setting
    assert tuning.best_at(4e-3) is None


# --- the report ---


def test_means_that_differ_by_rounding_alone_are_equal() -> None:
    summed = 0.1 + 0.2
    assert summed > 0.3, "by the last bit"
    one = ByTemperature({0.25: 0.3, 0.5: summed}, {0.25: 0.3, 0.5: summed})
    assert (one.best, one.best_8) == (0.25, 0.25)
    first, second = SETTING, SETTING.model_copy(update={"learning_rate": SETTING.learning_rate * 2})
    grid = Tuning({first: ByTemperature({0.5: 0.3}, {}), second: ByTemperature({0.5: summed}, {})})
    assert grid.best == first


BASE_ON_VALIDATION = ByTemperature({0.0: 0.1, 0.25: 0.2, 0.5: 0.1, 1.0: 0.1}, {0.25: 0.2, 0.5: 0.3, 1.0: 0.2})
TRAINED_ON_VALIDATION = ByTemperature({0.0: 0.3, 0.25: 0.4, 0.5: 0.5, 1.0: 0.5}, {0.25: 0.7, 0.5: 0.7, 1.0: 0.75})


@pytest.fixture
def report(tmp_path: Path) -> str:
    settings = [Setting(learning_rate=rate, teacher_temperature=1.0) for rate in (5e-4, 1e-3, 2e-3)]
    cooler = Setting(learning_rate=1e-3, teacher_temperature=0.5)
    better = ByTemperature({0.0: 0.25, 0.25: 0.5, 0.5: 0.625, 1.0: 0.5}, {0.25: 0.5, 0.5: 0.875, 1.0: 0.5})
    grid = Tuning({cooler: better, **dict.fromkeys(settings, TRAINED_ON_VALIDATION)})
    runs = [make_run(make_plan(seed=s), 0.1, 0.6 + 0.1 * s) for s in (1, 2)]
    ours = ArmResults(DISTIL, runs, grid, TRAINED_ON_VALIDATION)
    theirs = [make_run(make_plan(GRPO, s), 0.1, 0.5 + 0.1 * s, seconds=20.0) for s in (2, 1)]
    theirs[0] = theirs[0].model_copy(update={"num_untrained": 3, "num_invalid": 1, "machine": "One GPU, torch 2"})
    entries = [ours, ArmResults(GRPO, theirs, Tuning({SETTING: TRAINED_ON_VALIDATION}), TRAINED_ON_VALIDATION)]
    gaps = [Gap(shown="the solution", temperature=0.5, student=0.25, teacher=0.75, control=0.125)]
    section = Section("fork", "What it is.", "the solution", gaps, BASE_ON_VALIDATION, BUDGET, 3, entries)
    text, figure = write_report([section], tmp_path, "tiny", "python -m benchmarks.learn")
    assert figure.stat().st_size > 10_000
    return text.read_text()


def row_of(report: str, arm: str, table: int = 1) -> dict[str, str]:
    """An arm's row in one of a world's tables, from 0 on: headlines, arms compared, learning rates."""
    tables = [part.splitlines() for part in report.split("\n\n") if part.startswith("| arm |")]
    names, own = (next(line for line in tables[table] if line.startswith(f"| {start} |")) for start in ("arm", arm))
    return dict(zip(*([cell.strip() for cell in line.strip("|").split("|")] for line in (names, own)), strict=True))


def test_the_headline_is_best_trained_less_best_base_each_at_the_temperature_that_validation_chose(report: str) -> None:
    row, base = row_of(report, "distil", table=0), row_of(report, "untrained", table=0)
    assert (row["T"], base["T"]) == ("0.5", "0.25")
    assert (row["T of pass@8"], base["T of pass@8"]) == ("1", "0.5")
    assert [base[name] for name in ("greedy", "T=0.25", "T=0.5", "T=1")] == ["0.050", "0.075", "0.100", "0.050"]
    assert [row[name] for name in ("greedy", "T=0.25", "T=0.5", "T=1")] == ["0.375", "0.562", "0.750", "0.375"]
    assert row["over seeds"].startswith("+0.675 ["), "0.7 and 0.8 less 0.075"
    assert row["best trained less best base, over families"] == "+0.675", "one family has no interval"
    assert row["pass@8 less best base's, over families"] == "+0.650"


def test_the_interval_of_the_headline_is_over_families_each_averaged_over_seeds(tmp_path: Path) -> None:
    runs = []
    for seed, (one, other) in enumerate([(0.4, 0.8), (0.6, 0.8)]):
        start = make_point(0, 0, 0.2, {"f": 0.2, "g": 0.2})
        end = make_point(2, 10, (one + other) / 2, {"f": one, "g": other})
        runs.append(make_run(make_plan(seed=seed), 0.1).model_copy(update={"curve": (start, end)}))
    half = ByTemperature({0.5: 1.0}, {0.5: 1.0})
    entry = ArmResults(DISTIL, runs, Tuning({}), half)
    section = Section("fork", "What it is.", "the solution", [], half, BUDGET, 1, [entry])
    text, _ = write_report([section], tmp_path, "tiny", "any")
    row = row_of(text.read_text(), "distil", table=0)
    # 0.3 in one family, 0.6 in the other: 0.45 ± 12.706 * 0.15, within what a difference of shares can be
    assert row["best trained less best base, over families"] == "+0.450 [-1.000, +1.000]"
    assert row["over seeds"] == "+0.450 [-0.185, +1.000]", "0.4 and 0.5: ± 12.706 * 0.05"


def test_the_report_pairs_by_seed_and_compares_at_equal_time(report: str) -> None:
    row = row_of(report, "grpo")
    assert row["pass@1"].startswith("0.650 [")
    assert row["less distil"] == row["pass@8 less distil"] == "-0.100 [-0.844, +0.775]"
    assert row["pass@1 at equal time"] == "0.375", "half-way between 0.1 and 0.65, when the quicker arm was done"
    assert row["that less distil"].startswith("-0.375 [")
    assert row_of(report, "distil")["less distil"] == ""


def test_the_report_says_what_a_world_is_what_was_tried_and_what_went_wrong(report: str) -> None:
    for expected in (
        "What it is.",
        "| the solution | 0.5 | 0.250 | 0.750 | 0.125 | +0.500 | +0.625 |",
        "commit abc1234",
        "- grpo: lr 0.001: 0.300, 0.400, 0.500, 0.500",
    ):
        assert expected in report
    assert row_of(report, "distil")["clipped"] == "0.250", "2 of 8 tokens"
    assert "- grpo: in all runs 3 updates changed nothing, 1 invalid rollouts" in report


def test_the_report_names_the_machines_that_ran(report: str) -> None:
    assert "commit abc1234 on\nOne GPU, torch 2; Two cores, torch 2." in report


def test_the_report_compares_all_arms_at_every_learning_rate(report: str) -> None:
    assert "over 3 tuning seeds:" in report
    assert "| arm | lr 0.0005 | lr 0.001 | lr 0.002 |" in report
    assert "| distil | 0.300, 0.500, 0.750 (τ 1) | 0.250, 0.625, 0.875 (τ 0.5) | 0.300, 0.500, 0.750 (τ 1) |" in report
    assert "| grpo |  | 0.300, 0.500, 0.750 |  |" in report


def test_seconds_are_the_processors_on_a_cpu_and_the_clocks_on_a_gpu(tmp_path: Path) -> None:
    def label(*devices: str) -> str:
        plans = [make_plan().model_copy(update={"device": device}) for device in devices]
        runs = [make_run(plan, 0.1, 0.5) for plan in plans]
        entry = ArmResults(DISTIL, runs, Tuning({}), TRAINED_ON_VALIDATION)
        return name_clock(Section("fork", "any", "any", [], BASE_ON_VALIDATION, BUDGET, 1, [entry]))

    assert label("cpu") == "the processor"
    assert label("cuda", "cuda:1") == "the clock"
    assert label("cuda", "cpu") == "the processor or the clock"


def test_the_report_marks_a_learning_rate_at_an_end_of_its_grid(report: str) -> None:
    assert row_of(report, "distil", table=0)["setting"] == "lr 0.001, τ 1"
    assert row_of(report, "grpo", table=0)["setting"] == "lr 0.001*"


# --- the whole ---


@pytest.mark.integration
def test_the_whole_shootout_ends_with_its_report_and_then_runs_nothing_twice(tmp_path: Path, untrained: Path) -> None:
    folder = tmp_path / "tiny-quick"
    folder.mkdir()
    (folder / "base-fork").symlink_to(untrained)
    command = ["--tier", "tiny", "--quick", "--worlds", "fork", "--arms", "grpo", "--jobs", "1", "--folder"]
    assert learn.main([*command, str(tmp_path)]) == 0
    lines = (folder / "runs.jsonl").read_text().splitlines()
    runs = [json.loads(line)["plan"] for line in lines]
    assert [(run["split"], run["arm"]["name"]) for run in runs] == [("validation", "grpo"), ("heldout", "grpo")]
    assert "| grpo |" in (folder / "tiny.md").read_text()
    [gap] = folder.glob("gap-fork-*.json")
    measured = gap.stat().st_mtime_ns
    assert learn.main([*command, str(tmp_path)]) == 0
    assert (folder / "runs.jsonl").read_text().splitlines() == lines
    assert gap.stat().st_mtime_ns == measured


@pytest.mark.integration
def test_a_shootout_that_is_stopped_says_that_it_can_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.learn", "--worlds", "fork", "--jobs", "1", "--folder", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        begun = tmp_path / "tiny"
        wait_until(lambda: any(begun.glob("base-fork*")), lambda: running.poll() is None)  # its worker has
        running.terminate()
        said, _ = running.communicate()
    assert running.returncode == 128 + signal.SIGINT
    assert "the same command goes on from there" in said
    assert "Traceback" not in said


def test_a_name_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="unknown here: nobody"):
        learn.main(["--arms", "nobody", "--folder", str(tmp_path)])
