"""Importing task files, the starter tasks among them."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pydantic import ValidationError

from services.cli.client import ApiClient
from services.cli.output.progress import Progress
from services.contracts.tasks import TaskCreate, TaskImport, TaskImported
from services.runtime.errors import InvalidInput

BATCH = 500  # rows per request; the api takes 1,000
STARTER_FILES = ("functions.jsonl", "tool_calls.jsonl", "house.jsonl")


class TaskFileInvalid(InvalidInput):
    """A line of the file is not a task; no task was imported."""

    title = "The task file has bad lines"
    hint = "docs/bring-data.md describes the format. No task was imported."


def read_tasks(path: Path) -> list[TaskCreate]:
    """The tasks of a JSONL file. Errors: TaskFileInvalid naming every bad line, InvalidInput when it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from None
    tasks, problems = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            tasks.append(TaskCreate.model_validate_json(line))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "the line"
            problems.append(f"line {number}: {place}: {first['msg']}")
    if problems:
        shown = "\n".join(problems[:20])
        more = f"\n… and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise TaskFileInvalid(f"{path}: {len(problems)} bad lines\n{shown}{more}")
    if not tasks:
        raise InvalidInput(f"{path} has no tasks")
    return tasks


@dataclass(frozen=True)
class Imported:
    """How many tasks of a file are new, and how many existed. notes: tasks that no expert can judge."""

    num_created: int
    num_existing: int
    notes: list[str]


def import_file(api: ApiClient, path: Path) -> Imported:
    """Import a file through the api; importing again changes nothing. Errors: those of `read_tasks`, ApiProblem."""
    return import_tasks(api, read_tasks(path))


def import_tasks(api: ApiClient, tasks: list[TaskCreate]) -> Imported:
    """Import tasks through the api in batches; importing again changes nothing. Errors: ApiProblem."""
    replies = [
        api.post("/v1/tasks/import", TaskImport(tasks=[task.model_dump(mode="json") for task in batch]), TaskImported)
        for batch in _batches(tasks)
    ]
    notes = list(dict.fromkeys(note for reply in replies for note in reply.notes))
    return Imported(sum(r.num_created for r in replies), sum(r.num_existing for r in replies), notes)


def _batches(tasks: list[TaskCreate]) -> Iterator[list[TaskCreate]]:
    for start in range(0, len(tasks), BATCH):
        yield tasks[start : start + BATCH]


def import_into(api: ApiClient, progress: Progress) -> None:
    """Import the starter tasks."""
    for name in STARTER_FILES:
        path = Path(str(files("services.starter") / name))
        reply = import_file(api, path)
        progress.say(f"{name}: {reply.num_created} tasks imported, {reply.num_existing} already imported")
