"""The person of the demo: knows right answers without references, and corrects through the api."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.starter_tasks.build import run_reference
from services.cli.client import ApiClient
from services.cli.commands.demo_person import FUNCTIONS, Person, write_answer
from services.cli.commands.starter import read_tasks
from services.cli.options import api_of
from services.cli.output.progress import Progress
from services.contracts.answers import AnswerKind
from services.contracts.experts import ConsultResult
from services.contracts.tasks import Message, Split, TaskCreate
from services.store.core.transaction import Store
from services.store.loop import consultations, settling, tasks
from services.store.tables.corrections import CorrectionRow
from tests.cli.conftest import CommandLine
from tests.store.conftest import World


def starter_tasks(name: str) -> list[TaskCreate]:
    """The train tasks of a starter file, without the references that they may carry."""
    return [
        task.model_copy(update={"metadata": {k: value for k, value in task.metadata.items() if k != "reference"}})
        for task in read_tasks(Path(str(files("services.starter") / name)))
        if task.split is Split.TRAIN
    ]


def test_the_functions_it_writes_pass_the_tests_of_their_tasks() -> None:
    written = {str(task.key).rpartition("/")[2]: write_answer(task) for task in starter_tasks("functions.jsonl")}
    assert {name for name, answer in written.items() if answer is not None} == {*FUNCTIONS}
    for task in starter_tasks("functions.jsonl"):
        answer = write_answer(task)
        if answer is not None:
            source = answer.removeprefix("```python\n").removesuffix("\n```")
            tests: Any = task.metadata["tests"]
            for case in tests["cases"]:
                assert run_reference(source, tests["entry_point"], case["args"]) == case["expected"], task.key


def test_it_reads_the_desks_handbook() -> None:
    house = starter_tasks("house.jsonl")
    assert house
    assert [write_answer(task) for task in house] == [task.metadata["answer"] for task in house]


def test_of_a_tool_call_it_knows_the_tasks_reference_alone() -> None:
    [task, *_] = starter_tasks("tool_calls.jsonl")
    assert write_answer(task) is None
    assert write_answer(task.model_copy(update={"metadata": {"reference": "the call"}})) == "the call"


@pytest.mark.integration
def test_it_corrects_one_wrong_answer_of_each_kind(cli: CommandLine, store: Store, world: World) -> None:
    human = (AnswerKind.SCORE, AnswerKind.FEEDBACK, AnswerKind.SOLUTION)
    with store.transaction() as session:
        world.expert(session, "human", kinds=human, verifier=False).group_fraction = 0
        world.expert(session, "judge")
        wanted = [
            TaskCreate(key=key, domain="command", messages=[Message(role="user", content=f"Check {key} 31.")])
            for key in ("lamp", "gate", "roof")
        ]
        rows = [tasks.add(session, world.lineage_id, one)[0] for one in wanted]
        drawn = [world.drawn(session, row, size=2) for row in rows]
        ids = consultations.pending_of(session, [one.id for pair in drawn for one in pair])
        questions = consultations.claim(session, ids, lease_seconds=60)
    right = drawn[0][1].id  # the lamp's second answer is right
    with store.transaction() as session:
        for question in questions:
            settling.settle(session, question, ConsultResult(score=float(question.rollout_id == right)))
    person, quiet = Person(), Progress(Console(quiet=True))
    api: ApiClient = api_of(None, None)
    for _ in range(3):
        person.look(api, {"command", "math"}, quiet)
    api.close()
    with store.transaction() as session:
        [correction] = session.query(CorrectionRow)
        assert (correction.status, correction.rollout_id in [one.id for one in drawn[1]]) == ("submitted", True)
        assert correction.text == "/juniper 31"
    assert [one.text for one in person.corrections] == ["/juniper 31"]
    assert person.used_by == {}
