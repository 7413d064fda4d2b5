"""The starter tasks as worlds of the shoot-out: one kind of task at a time, judged by the product's own verifiers.

They are built from the tables that the shipped files are made of, so that every train task has its solution; which of
these ship as references is kept beside it. Functions and tool calls run in a sandbox of ours, at PRECEPTOR_SANDBOX_URL;
`running_sandbox` starts one.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import TypeAdapter

from benchmarks.shootout.questions import Question, ask_for_score
from benchmarks.starter_tasks import build
from services.contracts.tasks import COMMAND_DOMAIN, MAX_NEW_TOKENS, Precedent, Split, TaskCreate
from services.experts.own.execution import ExecutionExpert
from services.experts.own.sandbox_client import SandboxClient
from services.experts.own.scorers import ExactMatchExpert, ToolCallExpert
from services.experts.protocol.app import ExpertService
from services.local.layout import LOOPBACK, Layout, free_port
from services.local.supervise.supervisor import ProcessSpec, Supervisor, answers_http
from services.runtime.settings import Settings

TABLES = {"functions": build.build_functions, "tool-calls": build.build_tool_calls, "house": build.build_house}
PRECEDENTS: TypeAdapter[list[Precedent]] = TypeAdapter(list[Precedent])
AT_ONCE = 8  # answers judged at a time


class Starter:
    """One kind of the starter tasks."""

    only_siblings = False
    data_sha256 = ""
    about = "The starter tasks of this kind, judged by the product's own verifier."

    def __init__(self, name: str) -> None:
        settings, built = Settings(), TABLES[name]()
        self.name, self.stop = name, list(settings.stop)
        self._tasks = {task.key: TaskCreate.model_validate(task.model_dump(mode="json")) for task in built}
        wanted = (task.metadata.get(MAX_NEW_TOKENS) for task in self._tasks.values())
        self.max_new_tokens = min([settings.max_new_tokens, *(most for most in wanted if isinstance(most, int))])
        self._referenced = build.find_referenced(built)
        self._loop = asyncio.new_event_loop()
        self._expert = _find_expert(name, settings)

    def questions(self, split: Split) -> Sequence[Question]:
        """In the table's order. Only train tasks have a solution or precedents."""
        return [
            Question(
                key=key,
                family=task.family or key,
                domain=task.domain,
                messages=tuple(task.messages),
                solution=str(task.metadata.get("reference", "")),
                reference_ships=task.family in self._referenced,
                right=str(task.metadata["answer"]) if task.domain == COMMAND_DOMAIN else None,
                precedents=tuple(PRECEDENTS.validate_python(task.metadata.get("precedents", []))),
            )
            for key, task in self._tasks.items()
            if task.split is split
        ]

    def judge(self, asked: Sequence[tuple[Question, str]]) -> list[float]:
        """By running them. Raises RuntimeError for a task whose verifier abstains: its file would be broken."""
        return self._loop.run_until_complete(self._judge_all(asked))

    def close(self) -> None:
        """The connections to the sandbox."""
        if isinstance(self._expert, ExecutionExpert | ToolCallExpert):
            self._loop.run_until_complete(self._expert.close())
        self._loop.close()

    async def _judge_all(self, asked: Sequence[tuple[Question, str]]) -> list[float]:
        room = asyncio.Semaphore(AT_ONCE)

        async def judge(question: Question, answer: str) -> float:
            async with room:
                metadata = self._tasks[question.key].metadata
                shown = {key: value for key, value in metadata.items() if key not in ("reference", "precedents")}
                return await ask_for_score(self._expert, question, shown, answer)

        return list(await asyncio.gather(*(judge(*one) for one in asked)))


def _find_expert(name: str, settings: Settings) -> ExpertService:
    if name == "house":
        return ExactMatchExpert()
    sandbox = SandboxClient(settings.sandbox_url, os.environ.get("SANDBOX_API_KEY", ""))
    return ExecutionExpert(sandbox) if name == "functions" else ToolCallExpert(sandbox)


@contextmanager
def running_sandbox(folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """A sandbox, and its address in the environment, until the block ends. Raises ProcessFailed if it cannot start."""
    layout, port = Layout.open(folder), free_port()
    url = f"http://{LOOPBACK}:{port}"
    command = [sys.executable, "-m", "sandbox", "--host", LOOPBACK, "--port", str(port)]
    with Supervisor(layout, report) as supervisor:
        supervisor.start(ProcessSpec("sandbox", command, is_ready=answers_http(f"{url}/healthz"), url=url))
        os.environ["PRECEPTOR_SANDBOX_URL"] = url
        yield
