"""The starter tasks as worlds of the shoot-out: one kind of task at a time, judged by the product's own verifiers.

Functions and tool calls run in a sandbox of ours, at PRECEPTOR_SANDBOX_URL; `running_sandbox` starts one.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from benchmarks.shootout.questions import Question, ask_for_score
from services.cli.commands.starter import read_tasks
from services.contracts.tasks import Split, TaskCreate
from services.experts.own.execution import ExecutionExpert
from services.experts.own.sandbox_client import SandboxClient
from services.experts.own.scorers import ToolCallExpert
from services.local.layout import LOOPBACK, Layout, free_port
from services.local.supervise.supervisor import ProcessSpec, Supervisor, answers_http
from services.runtime.settings import Settings

FILES = {"functions": "functions.jsonl", "tool-calls": "tool_calls.jsonl"}
AT_ONCE = 8  # answers judged at a time


class Starter:
    """One kind of the starter tasks."""

    only_siblings = False
    data_sha256 = ""
    about = "The starter tasks of this kind, judged in the sandbox by the product's own verifier."

    def __init__(self, name: str) -> None:
        settings = Settings()
        self.name, self.max_new_tokens, self.stop = name, settings.max_new_tokens, list(settings.stop)
        self._tasks = {_key(task): task for task in read_tasks(Path(str(files("services.starter") / FILES[name])))}
        self._loop = asyncio.new_event_loop()
        sandbox = SandboxClient(settings.sandbox_url, os.environ.get("SANDBOX_API_KEY", ""))
        self._expert = ExecutionExpert(sandbox) if name == "functions" else ToolCallExpert(sandbox)

    def questions(self, split: Split) -> Sequence[Question]:
        """In the file's order. Only train tasks have a solution."""
        return [
            Question(
                key=_key(task),
                family=task.family or _key(task),
                domain=task.domain,
                messages=tuple(task.messages),
                solution=str(task.metadata.get("reference", "")),
            )
            for task in self._tasks.values()
            if task.split is split
        ]

    def judge(self, asked: Sequence[tuple[Question, str]]) -> list[float]:
        """By running them. Raises RuntimeError for a task whose verifier abstains: its file would be broken."""
        return self._loop.run_until_complete(self._judge_all(asked))

    def close(self) -> None:
        """The connections to the sandbox."""
        self._loop.run_until_complete(self._expert.close())
        self._loop.close()

    async def _judge_all(self, asked: Sequence[tuple[Question, str]]) -> list[float]:
        room = asyncio.Semaphore(AT_ONCE)

        async def judge(question: Question, answer: str) -> float:
            async with room:
                metadata = self._tasks[question.key].metadata
                shown = {key: value for key, value in metadata.items() if key != "reference"}
                return await ask_for_score(self._expert, question, shown, answer)

        return list(await asyncio.gather(*(judge(*one) for one in asked)))


def _key(task: TaskCreate) -> str:
    if task.key is None:
        raise ValueError("a starter task has no key")
    return task.key


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
