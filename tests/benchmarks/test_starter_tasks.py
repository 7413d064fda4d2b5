"""The starter's tasks keep the promises of docs/bring-data.md."""

import ast
import asyncio
import json
import re
from collections import Counter, defaultdict

import pytest
from pydantic import JsonValue

from benchmarks.starter_tasks import build
from benchmarks.starter_tasks.function_families import FUNCTION_FAMILIES
from services.cli.commands.demo_person import HANDBOOK
from services.contracts.experts import ConsultResult
from services.contracts.tasks import Precedent, Split, TaskCreate
from services.experts.own.scorers import ExactMatchExpert
from tests.experts.samples import make_question

KINDS = {"functions": "code/python", "tool_calls": "tool-call", "house": "command"}
BUILT = {"functions": build.build_functions, "tool_calls": build.build_tool_calls}
"""Tasks whose references are executed, with the references that do not ship."""
FENCED = re.compile(r"\A```(python|json)\n(.*)\n```\Z", re.DOTALL)


def read_file(kind: str) -> str:
    return (build.FOLDER / f"{kind}.jsonl").read_text(encoding="utf-8")


def read_tasks(kind: str) -> list[TaskCreate]:
    return [TaskCreate.model_validate_json(line) for line in read_file(kind).splitlines()]


def test_the_generator_rewrites_the_committed_files_byte_for_byte() -> None:
    assert build.render(build.ship(build.build_functions())) == read_file("functions")
    assert build.render(build.ship(build.build_tool_calls())) == read_file("tool_calls")
    assert build.render(build.ship(build.build_house())) == read_file("house")


@pytest.mark.parametrize("kind", KINDS)
def test_every_line_is_a_task_the_api_takes_under_a_key_of_its_own(kind: str) -> None:
    tasks = read_tasks(kind)
    assert len({task.key for task in tasks}) == len(tasks)
    assert {task.domain for task in tasks} == {KINDS[kind]}


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_enough_tasks_to_train_on_to_tune_with_and_to_hold_out(kind: str) -> None:
    counts = Counter(task.split for task in read_tasks(kind))
    assert counts[Split.TRAIN] >= 150
    assert counts[Split.VALIDATION] >= 30
    assert counts[Split.HELDOUT] >= 60


@pytest.mark.parametrize("kind", KINDS)
def test_whole_families_are_held_out(kind: str) -> None:
    splits: defaultdict[str | None, set[Split]] = defaultdict(set)
    sizes: Counter[str | None] = Counter()
    for task in read_tasks(kind):
        splits[task.family].add(task.split)
        sizes[task.family] += 1
    assert all(len(found) == 1 for found in splits.values())
    held_out = [family for family, found in splits.items() if found == {Split.HELDOUT}]
    assert len(held_out) >= 12
    assert all(sizes[family] >= 5 for family in held_out)


@pytest.mark.parametrize("kind", BUILT)
def test_training_tasks_and_no_others_are_built_with_a_reference(kind: str) -> None:
    for task in BUILT[kind]():
        assert ("reference" in task.metadata) == (task.split == "train"), task.key


@pytest.mark.parametrize("kind", KINDS)
def test_no_prompt_is_asked_twice(kind: str) -> None:
    prompts = Counter(task.messages[-1].content for task in read_tasks(kind))
    assert [prompt for prompt, times in prompts.items() if times > 1] == []


def test_no_held_out_function_or_tool_has_the_name_of_another() -> None:
    functions = Counter(task.metadata["tests"]["entry_point"] for task in read_tasks("functions"))  # type: ignore[index,call-overload]
    assert max(functions.values()) == 1
    families: defaultdict[str, set[str | None]] = defaultdict(set)
    for task in read_tasks("tool_calls"):
        for name in task.metadata["tools"]["names"]:  # type: ignore[index,call-overload,union-attr]
            families[str(name)].add(task.family)
    assert all(len(found) == 1 for found in families.values())


def call_or_none(source: str, name: str, arguments: list[JsonValue]) -> str | None:
    try:
        return json.dumps(build.run_reference(source, name, arguments))
    except Exception:  # noqa: BLE001  a function of numbers that is given words may fail in any way
        return None


def test_no_training_function_passes_the_tests_of_a_held_out_one() -> None:
    splits = build.deal_splits("functions", [family.name for family in FUNCTION_FAMILIES])
    training = [
        (family.parameters.count(","), name, f"def {name}({family.parameters}):\n    {body}")
        for family in FUNCTION_FAMILIES
        if splits[family.name] == "train"
        for name, _, body in family.members
    ]
    solved = []
    for task in read_tasks("functions"):
        if task.split is not Split.HELDOUT:
            continue
        cases = json.loads(json.dumps(task.metadata["tests"]))["cases"]
        expected = [json.dumps(case["expected"]) for case in cases]
        for num_commas, name, source in training:
            if num_commas != len(cases[0]["args"]) - 1:
                continue
            if [call_or_none(source, name, case["args"]) for case in cases] == expected:
                solved.append((task.key, name))
    assert solved == []


def test_a_function_has_four_cases_or_more_that_do_not_all_agree() -> None:
    for task in read_tasks("functions"):
        cases = json.loads(json.dumps(task.metadata["tests"]))["cases"]
        assert len(cases) >= 4, task.key
        assert len({json.dumps(case["expected"]) for case in cases}) >= 2, task.key


def test_another_tool_of_the_family_never_gives_the_expected_result() -> None:
    for task in build.build_tool_calls():
        if task.split != "train":
            continue
        tools = json.loads(json.dumps(task.metadata["tools"]))
        match = FENCED.match(str(task.metadata["reference"]))
        assert match is not None
        call = json.loads(match[2])
        results = []
        for name in tools["names"]:
            try:
                results.append(build.run_reference(tools["source"], name, list(call["arguments"].values())))
            except TypeError:  # another number of parameters
                continue
        assert results.count(task.metadata["expected_result"]) == 1, task.key


@pytest.mark.parametrize("kind", BUILT)
def test_a_reference_is_one_fenced_block_that_gives_the_expected_values(kind: str) -> None:
    for task in BUILT[kind]():
        if task.split != "train":
            continue
        match = FENCED.match(str(task.metadata["reference"]))
        assert match is not None, task.key
        metadata = json.loads(json.dumps(task.metadata))
        if match[1] == "python":
            tree = ast.parse(match[2])
            assert [type(node) for node in tree.body] == [ast.FunctionDef]
            tests = metadata["tests"]
            for case in tests["cases"]:
                assert build.run_reference(match[2], tests["entry_point"], case["args"]) == case["expected"]
        else:
            call = json.loads(match[2])
            assert set(call) == {"tool", "arguments"}
            result = build.run_reference(metadata["tools"]["source"], call["tool"], call["arguments"])
            assert result == metadata["expected_result"]


# --- the house ---


def find_thing(task: TaskCreate) -> str:
    assert task.key is not None
    return task.key.rpartition("/")[2]


def test_a_house_task_asks_for_the_private_word_of_its_object_and_its_number() -> None:
    assert len(set(HANDBOOK.values())) == len(HANDBOOK) == 8
    for task in read_tasks("house"):
        request = task.messages[-1].content
        [number] = re.findall(r"\d+", request)
        assert task.metadata["answer"] == f"/{HANDBOOK[find_thing(task)]} {number}"
        assert find_thing(task) in request.lower()
        assert not any(word in request.lower() for word in HANDBOOK.values())


def test_the_house_has_no_reference_and_held_out_requests_have_unseen_wordings_and_numbers() -> None:
    numbers: defaultdict[Split, set[str]] = defaultdict(set)
    for task in read_tasks("house"):
        assert "reference" not in task.metadata
        numbers[task.split].update(re.findall(r"\d+", task.messages[-1].content))
    assert numbers[Split.TRAIN].isdisjoint(numbers[Split.VALIDATION] | numbers[Split.HELDOUT])
    assert numbers[Split.VALIDATION].isdisjoint(numbers[Split.HELDOUT])


def test_a_precedent_of_the_house_is_another_train_request_for_the_same_object() -> None:
    tasks = read_tasks("house")
    asked = {task.messages[-1].content: task for task in tasks}
    for task in tasks:
        assert ("precedents" in task.metadata) == (task.split is Split.TRAIN)
        if task.split is not Split.TRAIN:
            continue
        [precedent] = (Precedent.model_validate(one) for one in json.loads(json.dumps(task.metadata["precedents"])))
        other = asked[precedent.messages[-1].content]
        assert other.split is Split.TRAIN
        assert other.family != task.family
        assert find_thing(other) == find_thing(task)
        assert precedent.answer == other.metadata["answer"] != task.metadata["answer"]


def test_the_product_judges_the_house_by_its_metadata() -> None:
    expert = ExactMatchExpert()
    for task in read_tasks("house")[::20]:
        for text, score in ((str(task.metadata["answer"]), 1.0), (f"{task.metadata['answer']}0", 0.0)):
            question = make_question(text, domain=task.domain, metadata={"answer": task.metadata["answer"]})
            verdict = asyncio.run(expert.consult(question))
            assert isinstance(verdict, ConsultResult)
            assert verdict.score == score


def test_a_quarter_of_the_tool_families_that_train_ships_with_references_and_nothing_else_does() -> None:
    built = [*build.build_functions(), *build.build_tool_calls(), *build.build_house()]
    shipped = build.ship(built)
    referenced = Counter(task.family for task in shipped if "reference" in task.metadata)
    assert len(referenced) == 9
    assert all(family.startswith("tools/") and count == 5 for family, count in referenced.items())
    for before, after in zip(built, shipped, strict=True):
        without = {key: value for key, value in before.metadata.items() if key != "reference"}
        assert {key: value for key, value in after.metadata.items() if key != "reference"} == without
