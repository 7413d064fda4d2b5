"""Tasks: the prompts the policy is trained and measured on."""

from uuid import UUID

from starlette.responses import Response

from services.api.deps import SettingsDep, StoreDep
from services.contracts.persons import Right
from services.contracts.tasks import Split
from services.store.core import row_counts
from services.store.loop import lineages, tasks
from services.store.views import browse, versions
from services.web.forms import build_pages
from services.web.lists import Chosen, RowsDep, list_path
from services.web.visitors import VisitorDep, needs, page

router = build_pages()


@router.get("/tasks", dependencies=[needs(Right.READ)])
def show_tasks(
    visitor: VisitorDep,
    store: StoreDep,
    settings: SettingsDep,
    paging: RowsDep,
    split: Chosen[Split] = None,
    domain: Chosen[str] = None,
    family: Chosen[str] = None,
) -> Response:
    """Tasks, newest first. Errors: LineageNotFound (404), BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        found = browse.list_tasks(
            session, lineage.id, split=split, domain=domain, family=family, cursor=paging.cursor, limit=paging.limit
        )
        counts = row_counts.read(session, lineage.id, ("task",))["task"]
    return page(
        visitor,
        "tasks/list.html",
        tasks=found,
        counts=counts,
        path=list_path("/tasks", split=split, domain=domain, family=family),
        splits=[*Split],
        domains=sorted({tally.kind for tally in counts}),
        chosen={"split": split, "domain": domain, "family": family},
    )


@router.get("/tasks/{task_id}", dependencies=[needs(Right.READ)])
def show_task(task_id: UUID, visitor: VisitorDep, store: StoreDep, paging: RowsDep) -> Response:
    """One task with its rollouts. Errors: TaskNotFound (404), BadCursor (422)."""
    with store.reading() as session:
        row = tasks.get(session, task_id)
        found = browse.list_rollouts(
            session,
            row.lineage_id,
            visitor.caller.rights,
            task_id=row.id,
            group_id=None,
            status=None,
            purpose=None,
            cursor=paging.cursor,
            limit=paging.limit,
        )
        task = tasks.view(row)
        num_groups = row.num_groups
        by_version = versions.answers_to_task(session, row.id)
    return page(visitor, "tasks/one.html", task=task, num_groups=num_groups, by_version=by_version, rollouts=found)
