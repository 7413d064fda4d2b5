"""Acts on tasks: adding one, and importing many at once."""

from collections.abc import Sequence
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy.orm import Session

from sandbox.http.problems import describe_errors
from services.acts.call import Call
from services.contracts.base import JsonObject
from services.contracts.tasks import ImportedTask, Task, TaskCreate, TaskImported
from services.runtime.errors import InvalidInput
from services.store.loop import coverage, tasks


class RowsRefused(InvalidInput):
    """Some parts of the request are wrong; `errors` says which and why. Nothing was stored."""

    title = "Some rows are invalid"
    hint = "`errors` names the rows and what is wrong with each; mend them and send the whole batch again."

    def __init__(self, detail: str, errors: Sequence[JsonObject]) -> None:
        super().__init__(detail)
        self.errors = tuple(errors)


def add(call: Call, wanted: TaskCreate) -> Task:
    """Add a task, or find the one that is there with the same key and content.

    Errors: TaskKeyTaken (409), SplitsOverlap (422).
    """
    with call.begin() as act:
        task = act.keep(tasks.view(tasks.add(act.session, act.lineage.id, wanted)[0]))
        act.record("tasks.add", "task", task.id)
    return task


def import_all(call: Call, rows: Sequence[JsonObject]) -> TaskImported:
    """Add all of these tasks or none; those that are there already are reported and left alone.

    Errors: RowsRefused (422).
    """
    wanted = _read_rows(rows)
    with call.begin() as act:
        imported = act.keep(_import(act.session, act.lineage.id, wanted))
        act.record("tasks.import", "task", None, {"num_created": imported.num_created})
    return imported


def _read_rows(rows: Sequence[JsonObject]) -> list[TaskCreate]:
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
        raise RowsRefused(f"{len(rows)} rows are invalid ({shown}); {first}", bad)
