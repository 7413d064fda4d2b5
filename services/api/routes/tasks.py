"""Tasks: prompts, what experts may need to judge an answer, and the split they belong to."""

from typing import Annotated
from uuid import UUID

from fastapi import Query
from pydantic import ValidationError
from sqlalchemy.orm import Session

from sandbox.http.problems import describe_errors
from services.acts.callers import Caller
from services.api.auth import CallerDep, needs
from services.api.deps import PagingDep, SettingsDep, StoreDep, needs_space
from services.api.once import OnceDep
from services.api.problems import RowsRefused
from services.api.routes.common import build_router, problems
from services.contracts.base import JsonObject, Page
from services.contracts.persons import Right
from services.contracts.tasks import ImportedTask, Split, Task, TaskCreate, TaskImport, TaskImported
from services.store.loop import coverage, lineages, tasks
from services.store.views import browse

router = build_router("tasks")


@router.post(
    "/tasks",
    status_code=201,
    dependencies=[needs(Right.SEND), needs_space],
    responses=problems(409, 413, 415, 422, 507),
)
def add_task(body: TaskCreate, store: StoreDep, settings: SettingsDep, once: OnceDep) -> Task:
    """Add a task.

    `messages` end with the prompt to answer. `metadata` holds what experts need: `tests`, `tools`, `expected_result`,
    `answer`, and for the split `train` a `reference`. Without a `key` the content is the key; the same key with the
    same content is the task that is there. A family (of a domain) and a prompt stay on one side of train and the
    other splits.

    Errors: TaskKeyTaken (409), SplitsOverlap (422), OutOfSpace (507).
    """
    with store.transaction() as session:
        lineage = lineages.get(session, settings.lineage)
        return once(session, lambda: tasks.view(tasks.add(session, lineage.id, body)[0]))


@router.post(
    "/tasks/import",
    status_code=201,
    dependencies=[needs(Right.SEND), needs_space],
    responses=problems(409, 413, 415, 422, 507),
)
def import_tasks(body: TaskImport, store: StoreDep, settings: SettingsDep, once: OnceDep) -> TaskImported:
    """Add up to 1,000 tasks: all of them or none.

    Each row is what `POST /v1/tasks` takes. Rows count from 1; if any cannot be accepted nothing is stored, and
    `errors` lists each bad row with the reason. An import may be repeated: tasks that are there already are reported
    and left alone.

    Errors: RowsRefused (422), OutOfSpace (507).
    """
    wanted = _read_rows(body.tasks)
    with store.transaction() as session:
        lineage = lineages.get(session, settings.lineage)
        return once(session, lambda: _import(session, lineage.id, wanted))


def _read_rows(rows: list[JsonObject]) -> list[TaskCreate]:
    good, bad = [], []
    for number, row in enumerate(rows, start=1):
        try:
            good.append(TaskCreate.model_validate(row))
        except ValidationError as error:
            bad += [{"row": number, **found} for found in describe_errors(error.errors(include_url=False))]
    _refuse(bad)
    return good


def _import(session: Session, lineage_id: UUID, wanted: list[TaskCreate]) -> TaskImported:
    done: list[ImportedTask] = []
    bad: list[JsonObject] = []
    for number, task in enumerate(wanted, start=1):
        try:
            row, created = tasks.add(session, lineage_id, task)
        except tasks.TaskKeyTaken as error:
            bad.append({"row": number, "where": "key", "what": error.detail})
        except tasks.SplitsOverlap as error:
            bad.append({"row": number, "where": error.where, "what": error.detail})
        else:
            done.append(ImportedTask(row=number, id=row.id, key=row.key, created=created))
    _refuse(bad)
    num_created = sum(one.created for one in done)
    kinds = [(task.domain, frozenset(task.metadata)) for task in wanted]
    return TaskImported(
        num_created=num_created,
        num_existing=len(done) - num_created,
        tasks=done,
        notes=coverage.explain_tasks(session, lineage_id, kinds),
    )


def _refuse(bad: list[JsonObject]) -> None:
    if bad:
        rows = sorted({int(str(found["row"])) for found in bad})
        shown = ", ".join(map(str, rows[:20])) + (", …" if len(rows) > 20 else "")
        first = f"row {bad[0]['row']}: {bad[0]['where']}: {bad[0]['what']}"
        raise RowsRefused(f"{len(rows)} rows cannot be accepted ({shown}); {first}", bad)


@router.get("/tasks", dependencies=[needs(Right.READ)], responses=problems(422))
def list_tasks(
    caller: CallerDep,
    store: StoreDep,
    settings: SettingsDep,
    paging: PagingDep,
    split: Split | None = None,
    domain: Annotated[str | None, Query(max_length=200)] = None,
    family: Annotated[str | None, Query(max_length=200)] = None,
) -> Page[Task]:
    """Tasks, newest first. Owners and operators see the values of `metadata`, others its keys.

    Errors: BadCursor (422).
    """
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        page = browse.list_tasks(
            session,
            lineage.id,
            split=split,
            domain=domain,
            family=family,
            cursor=paging.cursor,
            limit=paging.limit,
        )
    return Page(items=[_show(task, caller) for task in page.items], next_cursor=page.next_cursor)


@router.get("/tasks/{task_id}", dependencies=[needs(Right.READ)], responses=problems(404))
def get_task(task_id: UUID, caller: CallerDep, store: StoreDep) -> Task:
    """One task. Owners and operators see the values of `metadata`, others its keys. Errors: TaskNotFound (404)."""
    with store.reading() as session:
        return _show(tasks.view(tasks.get(session, task_id)), caller)


def _show(task: Task, caller: Caller) -> Task:
    """The task as this caller may see it: who samples rollouts or judges them must not read the hidden tests."""
    if caller.may(Right.OPERATE):
        return task
    return task.model_copy(update={"metadata": dict.fromkeys(task.metadata)})
