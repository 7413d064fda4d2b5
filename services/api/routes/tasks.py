"""Tasks: prompts, metadata for experts, and splits."""

from typing import Annotated
from uuid import UUID

from fastapi import Query

from services.acts import tasks as acts
from services.acts.callers import Caller
from services.api.auth import CallerDep, needs
from services.api.calls import CallDep
from services.api.deps import PagingDep, SettingsDep, StoreDep, needs_space
from services.api.routes.common import build_router, problems
from services.contracts.base import Page
from services.contracts.persons import Right
from services.contracts.tasks import Split, Task, TaskCreate, TaskImport, TaskImported
from services.store.loop import lineages, tasks
from services.store.views import browse

router = build_router("tasks")


@router.post(
    "/tasks",
    status_code=201,
    dependencies=[needs(Right.SEND), needs_space],
    responses=problems(409, 413, 415, 422, 507),
)
def add_task(body: TaskCreate, call: CallDep) -> Task:
    """Add a task.

    `messages` end with the prompt to answer. `metadata` is for experts: `tests`, `tools`, `expected_result`, `answer`,
    and for the split `train` a `reference`. Without a `key` the content is the key; the same key and content return the
    existing task. A family (of a domain) and a prompt may be either in train or in the other splits, not in both.

    Errors: TaskKeyTaken (409), SplitsOverlap (422), OutOfSpace (507).
    """
    return acts.add(call, body)


@router.post(
    "/tasks/import",
    status_code=201,
    dependencies=[needs(Right.SEND), needs_space],
    responses=problems(409, 413, 415, 422, 507),
)
def import_tasks(body: TaskImport, call: CallDep) -> TaskImported:
    """Add up to 1,000 tasks: all of them or none.

    Each row has the fields of `POST /v1/tasks`. Rows count from 1; if any is invalid no task is stored, and `errors`
    lists each bad row with the reason. An import may be repeated: existing tasks are reported and stay as they are.

    Errors: RowsRefused (422), OutOfSpace (507).
    """
    return acts.import_all(call, body.tasks)


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
