"""What the shoot-out shows a teacher without an answer key: as the product would, in its order, and rolled in."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks.learn import TIERS
from benchmarks.shootout import pretrain
from benchmarks.shootout.memory import Memory
from benchmarks.shootout.questions import Question
from benchmarks.shootout.runs import Answerer, Arm, Budget, Plan, Setting, configure, draw_lessons
from benchmarks.shootout.starter import Starter
from benchmarks.shootout.synthetic import Rules
from services.contracts.ids import new_id
from services.contracts.sources import ContextSource
from services.contracts.tasks import Message, Precedent, Split
from services.policy.model.modeling import encode_text, load_policy, render_prompt
from services.policy.model.tiny import make_tiny_policy
from services.runtime.settings import Settings
from trainer.batch.build import build_batch
from trainer.step.state import begin

OWN, PRECEDENTS, REFERENCE = ContextSource.OWN_SUCCESS, ContextSource.PRECEDENTS, ContextSource.REFERENCE


def ask(key: str, text: str, family: str = "f", **more: object) -> Question:
    question = Question(key, family, "command", (Message(role="user", content=text),), f"solution of {key}")
    return Question(**{**vars(question), **more})


def told(memory: Memory, question: Question) -> list[tuple[ContextSource, str | None, list[str]]]:
    return [(one.source, one.solution, [p.answer for p in one.precedents]) for one in memory.find(question)]


def test_nothing_is_shown_of_a_task_before_anything_is_known() -> None:
    question = ask("a", "lamp 1")
    memory = Memory([question, ask("b", "lamp 2")])
    assert memory.find(question) == []
    memory.note(question, [False] * 8, None)
    assert memory.find(question) == []


def test_an_own_success_comes_first_then_precedents_then_the_reference_where_it_ships() -> None:
    carried = Precedent(messages=[Message(role="user", content="lamp 3")], answer="/heron 3")
    question = ask("a", "lamp 1", precedents=(carried,), reference_ships=True)
    memory = Memory([question])
    memory.note(question, [True], (new_id(), "<think>so</think>/heron 1"))
    assert told(memory, question) == [
        (OWN, "/heron 1", []),
        (PRECEDENTS, None, ["/heron 3"]),
        (REFERENCE, "solution of a", []),
    ]


def test_a_precedent_is_the_most_alike_right_answer_of_the_own_family_first_and_never_its_own() -> None:
    question = ask("a", "the lamp number 1 is broken")
    alike = ask("b", "the lamp number 2 is broken", family="other")
    same_family = ask("c", "please fix door 3")
    memory = Memory([question, alike, same_family])
    for one in (question, alike, same_family):
        memory.note(one, [False], None)
    memory.note(alike, [True], (new_id(), "/heron 2"))
    memory.note(question, [True], (new_id(), "/heron 1"))
    assert (PRECEDENTS, None, ["/heron 2"]) in told(memory, question)
    memory.note(same_family, [True], (new_id(), "/velvet 3"))
    assert told(memory, question) == [(OWN, "/heron 1", []), (PRECEDENTS, None, ["/velvet 3"])]


def test_references_that_ship_become_precedents_of_other_tasks_once_they_were_drawn() -> None:
    question, other = ask("a", "lamp 1"), ask("b", "lamp 2", reference_ships=True)
    memory = Memory([question, other])
    assert memory.find(question) == []
    memory.note(other, [False], None)
    assert told(memory, question) == [(PRECEDENTS, None, ["solution of b"])]


def test_a_pass_rate_is_the_tasks_own_then_everybodys_then_one() -> None:
    first, second = ask("a", "lamp 1"), ask("b", "lamp 2")
    memory = Memory([first, second])
    assert memory.pass_rate(first) == 1.0
    memory.note(first, [True, False, False, False], None)
    assert (memory.pass_rate(first), memory.pass_rate(second)) == (0.25, 0.25)
    memory.note(second, [False] * 4, None)
    assert (memory.pass_rate(first), memory.pass_rate(second)) == (0.25, 0.0)


# --- lessons without an answer key ---


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random policy that reads the synthetic worlds' questions."""
    folder = make_tiny_policy(tmp_path_factory.mktemp("memory") / "policy")
    loaded = load_policy(folder)
    loaded.tokenizer.chat_template = pretrain.TEMPLATE
    loaded.tokenizer.save_pretrained(folder)
    return folder


def make_plan(policy: Path, **changes: object) -> Plan:
    arm = Arm.model_validate({"name": "any", "objective": "distil", "shown": "product", **changes})
    return Plan(
        world="rules",
        arm=arm,
        setting=Setting(learning_rate=1e-3, teacher_temperature=0.5),
        seed=0,
        split=Split.VALIDATION,
        budget=Budget(updates=1, groups=2, group_size=8, measure_every=1, samples=8),
        policy=str(policy),
    )


def test_half_a_group_that_never_passes_is_drawn_by_the_teacher_and_learned_by_its_local_term_alone(
    policy: Path,
) -> None:
    plan, world = make_plan(policy, roll_in=0.5), Rules()
    config = configure(plan, world)
    state = begin(load_policy(policy), config)
    answerer = Answerer(state.model, load_policy(policy), world)
    carried = Precedent(messages=[Message(role="user", content="ab1234")], answer="123456")
    asked = [Question(**{**vars(q), "precedents": (carried,)}) for q in world.questions(Split.TRAIN)[:2]]
    memory = Memory(asked)
    first, _ = draw_lessons(answerer, memory, asked, 1, plan)
    assert not any(lesson.shown for lesson in first), "before its pass rate is known the policy draws alone"
    assert memory.pass_rate(asked[0]) == 0.0
    lessons, showable = draw_lessons(answerer, memory, asked, 2, plan)
    assert [lesson.shown for lesson in lessons] == ([False] * 4 + [True] * 4) * 2
    batch = build_batch(lessons, showable, state.tokenizer, state.vocabulary, config, Settings(), newest_version=1)
    assert batch.invalid == {}
    for lesson, row in zip(lessons, batch.rows, strict=True):
        [context] = row.contexts
        assert (context.source.kind, context.solution) == (PRECEDENTS, None)
        assert len(context.prompt_ids) > len(row.prompt_ids)
        assert (row.credited, row.score is None, row.rolled_in) == (not lesson.shown, lesson.shown, lesson.shown)
        assert lesson.prompt_token_ids == lessons[lessons.index(lesson) // 8 * 8].prompt_token_ids


def test_a_teacher_that_is_shown_nothing_reads_the_plain_prompt(policy: Path) -> None:
    plan, world = make_plan(policy, shown="nothing"), Rules()
    config = configure(plan, world)
    state = begin(load_policy(policy), config)
    answerer = Answerer(state.model, load_policy(policy), world)
    asked = world.questions(Split.TRAIN)[:1]
    lessons, showable = draw_lessons(answerer, Memory(asked), asked, 1, plan)
    rows = build_batch(lessons, showable, state.tokenizer, state.vocabulary, config, Settings(), newest_version=1).rows
    assert {row.contexts[0].prompt_ids for row in rows} == {rows[0].prompt_ids}
    assert {row.contexts[0].source.kind for row in rows} == {ContextSource.NOTHING}


def test_a_matched_arm_draws_and_reads_the_student_at_the_teachers_temperature(policy: Path) -> None:
    plan, world = make_plan(policy, sampling_temperature=0.5), Rules()
    config = configure(plan, world)
    state = begin(load_policy(policy), config)
    answerer = Answerer(state.model, load_policy(policy), world)
    asked = world.questions(Split.TRAIN)[:1]
    lessons, showable = draw_lessons(answerer, Memory(asked), asked, 1, plan)
    rows = build_batch(lessons, showable, state.tokenizer, state.vocabulary, config, Settings(), newest_version=1).rows
    assert {(row.temperature, row.credited) for row in rows} == {(0.5, True)}


# --- the worlds and arms of tier small ---


@pytest.mark.parametrize(
    ("name", "referenced", "carrying"), [("functions", 0, 0), ("tool-calls", 45, 0), ("house", 0, 160)]
)
def test_a_starter_world_knows_every_solution_and_what_ships_of_them(name: str, referenced: int, carrying: int) -> None:
    world = Starter(name)
    try:
        train, heldout = world.questions(Split.TRAIN), world.questions(Split.HELDOUT)
    finally:
        world.close()
    assert all(question.solution for question in train)
    assert not any(question.solution or question.precedents or question.reference_ships for question in heldout)
    assert sum(question.reference_ships for question in train) == referenced
    assert sum(bool(question.precedents) for question in train) == carrying


def test_the_logprob_of_the_right_answer_is_that_of_all_its_tokens_and_the_end(policy: Path) -> None:
    loaded = load_policy(policy)
    answerer = Answerer(loaded.model, loaded, Rules())
    first, second = (ask("a", "ab1234", right="12"), ask("b", "cd1234", right="3"))

    def read(question: Question) -> float:
        ids = render_prompt(loaded.tokenizer, question.messages)
        right = [*encode_text(loaded.tokenizer, question.right or ""), loaded.eos_token_ids[0]]
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([ids + right])).logits[0].log_softmax(-1)
        return sum(float(logits[len(ids) + place - 1, token]) for place, token in enumerate(right))

    assert answerer.read_right([first, second]) == pytest.approx((read(first) + read(second)) / 2, abs=1e-3)
    assert answerer.read_right([first, ask("c", "ef1234")]) is None


def test_the_house_is_judged_by_the_products_expert() -> None:
    world = Starter("house")
    try:
        question = world.questions(Split.HELDOUT)[0]
        [number] = re.findall(r"\d+", question.messages[-1].content)
        answers = [f"/heron {number}", "/heron 1", ""]
        assert world.judge([(question, answer) for answer in answers]) == [1.0, 0.0, 0.0]
    finally:
        world.close()


def test_the_arms_that_choose_the_defaults_differ_from_the_shipped_one_in_what_they_are_named_for() -> None:
    [shipped, *others] = TIERS["small"].courses["house"].arms
    assert (shipped.shown, shipped.roll_in, shipped.clip, shipped.sampling_temperature) == ("product", 0.0, 5.0, 1.0)
    changed = {
        arm.name: {key for key, value in arm if key != "name" and value != getattr(shipped, key)} for arm in others
    }
    assert changed == {
        "τ 1": {"teacher_temperature"},
        "matched": {"sampling_temperature"},
        "sharpen-only": {"shown"},
        "roll-in .5": {"roll_in"},
        "averaged": {"publish_average"},
        "distil + .3 sft": {"mixed"},
        "clip 1": {"clip"},
        "no clip": {"clip"},
        "sdpo": {"objective", "teacher_ema"},
        "sft": {"objective", "has_teacher"},
        "grpo": {"objective", "has_teacher"},
        "reference": {"shown"},
    }
