"""The worlds of published data sets: how their files are read, and what is told of one that is not right."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from benchmarks import learn
from benchmarks.shootout.published import SOURCES, DataUnusable, Published, find_family
from benchmarks.shootout.questions import Question
from benchmarks.shootout.results import Results, Run
from benchmarks.shootout.runs import Answerer, Arm, Budget, Drawn, Plan, Setting, configure, measure_gap, teach, train
from benchmarks.shootout.worlds import opened
from services.contracts.base import JsonObject
from services.contracts.tasks import Split
from services.policy.contract import FinishReason, Sample
from services.policy.model.modeling import load_policy
from services.policy.model.tiny import make_tiny_policy
from services.runtime.settings import Settings
from services.store.ledger.lesson_facts import LessonFacts
from trainer.batch.build import build_batch
from trainer.batch.contexts import Showable
from trainer.step.state import begin


def write(path: Path, rows: list[JsonObject]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def spell(number: int) -> str:
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


def sum_up(number: int) -> JsonObject:
    shown = f"Together they are <<{number}+1000={number + 1000}>>{number + 1000}.\n#### {number + 1000:,}"
    return {"question": f"How much are {number} {spell(number)}\u2028and a thousand apples?", "answer": shown}


def choose(letter: str, kind: str, number: int = 7, options: str = "1 2 3 4") -> JsonObject:
    lines = "\n".join(f"{name}: {value}" for name, value in zip("ABCD", options.split(), strict=True))
    prompt = f"What does a {kind} of ${number} \\mathrm{{~kg}}$ weigh?\n\n{lines}\nPlease reason."
    return {"id": "any", "system": "theirs", "prompt": prompt, "answer": letter}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "gsm8k-train.jsonl.gz", [sum_up(number) for number in range(40)])
    write(tmp_path / "gsm8k-test.jsonl", [sum_up(number) for number in range(100, 103)])
    write(tmp_path / "sciknoweval-physics-train.jsonl", [choose("ABCD"[i % 4], spell(i)) for i in range(12)])
    write(tmp_path / "sciknoweval-physics-test.jsonl.gz", [choose("C", "crow")])
    return tmp_path


def test_the_end_of_the_train_file_chooses_settings_and_the_test_file_is_held_out(data: Path) -> None:
    with opened("gsm8k", data) as world:
        counts = {split: len(world.questions(split)) for split in Split}
        keys = [question.key for split in Split for question in world.questions(split)]
    assert counts == {Split.TRAIN: 36, Split.VALIDATION: 4, Split.HELDOUT: 3}
    assert len(set(keys)) == len(keys)


def test_questions_that_differ_in_numbers_or_options_alone_are_a_family() -> None:
    def family(row: JsonObject) -> str:
        return find_family(str(row["prompt"]))

    same = [choose("A", "crow"), choose("B", "crow", 1_200), choose("C", "crow", options="up down left right")]
    assert len({family(row) for row in same}) == 1
    assert family(choose("A", "gull")) != family(same[0])
    written = ["It weighs 3 kg.", "It weighs 1,200.5 kg.", "It weighs -6.67e-11 kg."]
    assert len({find_family(text) for text in written}) == 1


def test_no_train_question_is_a_measured_one_with_other_numbers(data: Path) -> None:
    kinds = [("crow", 1), ("gull", 1), ("gull", 2), *((spell(i), 1) for i in range(27)), ("hawk", 1), ("hawk", 2)]
    kinds += [("crow", 3), ("gull", 3)]
    write(data / "sciknoweval-physics-train.jsonl", [choose("A", *kind) for kind in kinds])
    with opened("physics", data) as world:
        families = {split: [question.family for question in world.questions(split)] for split in Split}
        asked = {split: [question.messages[-1].content for question in world.questions(split)] for split in Split}
    assert not any("crow" in text for text in asked[Split.TRAIN] + asked[Split.VALIDATION]), "the test file has one"
    assert ["gull" in text for text in asked[Split.VALIDATION]] == [True] * 3, "a tenth of 32, from the end on, whole"
    assert len(families[Split.TRAIN]) == 29
    assert sum("hawk" in text for text in asked[Split.TRAIN]) == 2
    assert not {*families[Split.TRAIN]} & {*families[Split.VALIDATION], *families[Split.HELDOUT]}


def test_the_teacher_is_shown_the_reasoning_without_its_marks_and_answers_are_judged_by_value(data: Path) -> None:
    with opened("gsm8k", data) as world:
        question = world.questions(Split.TRAIN)[7]
        assert question.solution == "Together they are 1007.\nAnswer: 1,007"
        answers = [question.solution, "So it is 1007.\nAnswer: 1007.0", "Answer: 1,008", "1007, no: Answer: 7", ""]
        assert world.judge([(question, answer) for answer in answers]) == [1, 1, 0, 0, 0]
    assert "\u2028" in question.messages[-1].content


def test_a_choice_is_judged_by_its_letter(data: Path) -> None:
    with opened("physics", data) as world:
        [question] = world.questions(Split.HELDOUT)
        assert question.solution == "Answer: C"
        answers = ["Since it falls.\nAnswer: C", "**Answer: (C)**", "Answer: D", "C or D", "Answer: A, B, C or D"]
        assert world.judge([(question, answer) for answer in answers]) == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question": "q", "answer": "no number"}', "no number after ####"),
        ('{"question": "q", "answer": "#### "}', "no number after ####"),
        ('{"question": "", "answer": "#### 1"}', "no text in question and answer"),
        ('{"prompt": "q", "answer": "#### 1"}', "no text in question and answer"),
        ("[1]", "no text in question and answer"),
        ('{"question": ', "JSON"),
    ],
)
def test_a_line_that_is_not_right_is_named(line: str, said: str, data: Path) -> None:
    with (data / "gsm8k-test.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataUnusable, match=r"gsm8k-test\.jsonl, line 4: ") as refused:
        Published(SOURCES["gsm8k"], data)
    assert said in str(refused.value)


def test_a_letter_that_is_no_choice_is_refused(data: Path) -> None:
    write(data / "sciknoweval-physics-train.jsonl", [choose("E", "crow")])
    with pytest.raises(DataUnusable, match="none of the letters"):
        Published(SOURCES["physics"], data)


def test_a_file_that_is_cut_short_or_too_short_is_refused(data: Path) -> None:
    packed = data / "gsm8k-train.jsonl.gz"
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(DataUnusable, match="cannot be read"):
        Published(SOURCES["gsm8k"], data)
    write(packed, [sum_up(1)])
    with pytest.raises(DataUnusable, match="too few"):
        Published(SOURCES["gsm8k"], data)


def test_the_command_says_what_tier_gpu_misses_before_anything_has_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--tier", "gpu", "--folder", str(tmp_path / "runs"), "--data", str(tmp_path)]
    with pytest.raises(SystemExit):
        learn.main(command)
    assert "tier gpu needs --model" in capsys.readouterr().err
    command += ["--model", "any"]
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            learn.main(command)
        assert "no GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"neither gsm8k-train\.jsonl nor gsm8k-train\.jsonl\.gz is in"):
        learn.main([*command, "--device", "cpu"])


def make_plan(world: str, policy: Path, data_sha256: str = "", other_feedback: bool = False) -> Plan:
    return Plan(
        world=world,
        arm=Arm(name="any", objective="distil", other_feedback=other_feedback),
        setting=Setting(learning_rate=1e-2, teacher_temperature=1.0),
        seed=0,
        split=Split.HELDOUT,
        budget=Budget(updates=2, groups=2, group_size=8, measure_every=1, samples=8, tasks=1),
        policy=str(policy),
        data_sha256=data_sha256,
    )


def test_runs_and_gap_of_changed_files_are_others(data: Path) -> None:
    def digest(world: str) -> str:
        with opened(world, data) as it:
            return it.data_sha256

    before, others = digest("gsm8k"), digest("physics")
    write(data / "gsm8k-test.jsonl", [sum_up(number) for number in range(100, 104)])
    assert digest("gsm8k") != before
    assert (digest("physics"), digest("rules")) == (others, "")
    results = Results(data / "runs.jsonl", {"gsm8k": "a" * 64})
    plan = make_plan("gsm8k", data, before)
    counts = {"num_untrained": 0, "num_invalid": 0, "num_charged": 0, "num_clipped": 0}
    results.add(Run(plan=plan, base_sha256="a" * 64, commit="any", machine="any", curve=(), **counts))
    assert results.missing([plan]) == []
    assert results.missing([make_plan("gsm8k", data, digest("gsm8k"))]) != []
    assert learn.gap_file(data, "gsm8k", "a" * 64, before) != learn.gap_file(data, "gsm8k", "a" * 64, digest("gsm8k"))
    assert learn.gap_file(data, "rules", "a" * 64, "").name == "gap-rules-aaaaaaaaaaaa.json"


# --- a world whose teacher is shown right answers of siblings alone ---


def answered(question: Question, *texts: str) -> Drawn:
    samples = [
        Sample(text=text, token_ids=[5, 6], logprobs=[-1.0, -1.0], finish_reason=FinishReason.STOP) for text in texts
    ]
    return Drawn(question, (1, 2, 3), tuple(samples))


def make_answerer(plan: Plan, world: Published) -> Answerer:
    policy = load_policy(Path(plan.policy))
    return Answerer(policy.model, policy, world)


def contexts_of(lessons: list[LessonFacts], plan: Plan, world: Published) -> list[str | None]:
    """What the trainer shows its teacher of each lesson."""
    config = configure(plan, world)
    state = begin(load_policy(Path(plan.policy)), config)
    rows = build_batch(
        lessons, Showable(), state.tokenizer, state.vocabulary, config, Settings(), newest_version=1
    ).rows
    return [row.contexts[0].solution if row.contexts else None for row in rows]


def test_the_teacher_is_shown_right_answers_of_the_other_half_alone(data: Path) -> None:
    world = Published(SOURCES["physics"], data)
    first, second = world.questions(Split.TRAIN)[:2]
    right, late, wrong = "Think.\nAnswer: A", "Again.\nAnswer: A", "Answer: D"
    drawn = [answered(first, wrong, right, wrong, wrong, late, wrong, right, wrong), answered(second, *[wrong] * 8)]
    plan = make_plan("physics", make_tiny_policy(data / "policy"))
    lessons = list(teach(drawn, make_answerer(plan, world), 1, plan))
    assert {answer.expert for lesson in lessons for answer in lesson.answers} == {"verifier"}
    assert contexts_of(lessons, plan, world) == [right, late] * 4 + [None] * 8


def test_the_control_is_shown_another_tasks_right_answer_with_another_letter_or_nothing(data: Path) -> None:
    world = Published(SOURCES["physics"], data)
    questions = world.questions(Split.TRAIN)
    first, second, same = questions[0], questions[1], questions[4]
    assert first.solution == same.solution
    rights = {question.key: f"Think.\n{question.solution}" for question in questions}
    tried = {q.key: answered(q, "no", rights[q.key], *["no"] * 6) for q in (first, second, same)}
    plan = make_plan("physics", make_tiny_policy(data / "policy"), other_feedback=True)
    answerer = make_answerer(plan, world)

    def shown(*asked: Drawn) -> list[str | None]:
        return contexts_of(list(teach(asked, answerer, 1, plan)), plan, world)[::8]

    assert shown(tried[first.key], tried[same.key], tried[second.key]) == [
        rights[second.key],
        rights[second.key],
        rights[first.key],
    ]
    failed = answered(second, *["no"] * 8)
    assert shown(failed, tried[first.key]) == [rights[first.key], None]


def test_the_gap_is_that_of_right_answers_of_its_own(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = Published(SOURCES["physics"], data)
    asked_with: list[list[str | None] | None] = []
    temperatures: list[float] = []

    def draw(
        _: Answerer,
        questions: list[Question],
        count: int,
        seed: str,
        temperature: float,
        shown: list[str | None] | None = None,
    ) -> list[Drawn]:
        asked_with.append(shown)
        temperatures.append(temperature)
        return [answered(q, "no", f"{q.key}\n{q.solution}" if at < 2 else "no") for at, q in enumerate(questions)]

    monkeypatch.setattr(Answerer, "draw", draw)
    measure_gap(make_tiny_policy(data / "policy"), world, 2, "cpu", "float32")
    assert temperatures == [0.5] * 3 + [1.0] * 3, "teacher, control and student at one temperature"
    alone, own, others = asked_with[:3]
    first, second = (f"{question.key}\n{question.solution}" for question in world.questions(Split.TRAIN)[:2])
    count = len(world.questions(Split.TRAIN))
    assert alone is None
    assert own == [first, second, *[None] * (count - 2)]
    assert others is not None
    assert others[:3] == [second, first, first]


def test_nothing_shown_is_the_question_as_it_is(data: Path) -> None:
    world, policy = Published(SOURCES["physics"], data), load_policy(make_tiny_policy(data / "policy"))
    world.max_new_tokens = 2
    questions = world.questions(Split.TRAIN)[:2]
    answerer = Answerer(policy.model, policy, world)
    plain, shown = (answerer.draw(questions, 1, "any", shown=given) for given in (None, [None, "Answer: B"]))
    assert plain[0].prompt_ids == shown[0].prompt_ids
    [alone], [beside] = plain[0].samples, shown[0].samples
    assert alone.token_ids == beside.token_ids
    assert alone.logprobs == pytest.approx(beside.logprobs, abs=1e-4)  # other rows in the batch move the last digits
    assert len(shown[1].prompt_ids) > len(plain[1].prompt_ids)


@pytest.mark.parametrize("name", ["gsm8k", "physics"])
def test_a_policy_is_trained_on_a_published_data_set(name: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(_: Published, asked: list[tuple[Question, str]]) -> list[float]:
        return [float(index % 8 < 2) for index in range(len(asked))]  # a random policy would be right never

    monkeypatch.setattr(Published, "judge", judge)
    with opened(name, data) as world:
        world.max_new_tokens = 6
        outcome = train(make_plan(name, make_tiny_policy(data / "policy")), world)
    assert [point.update for point in outcome.curve] == [0, 1, 2]
    assert (outcome.num_untrained, outcome.num_invalid) == (0, 0)
    assert outcome.curve[-1].kl_base > 0
