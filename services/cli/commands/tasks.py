"""The commands about tasks."""

from pathlib import Path
from typing import Annotated

import typer

from services.cli.commands import starter
from services.cli.ids import TaskId
from services.cli.options import AsJson, Home, Limit, Url, api_of, show
from services.cli.output.lists import list_page
from services.contracts.base import JsonObject
from services.contracts.tasks import Split, Task

tasks = typer.Typer(
    no_args_is_help=True, help="Prompts to train and measure on. docs/bring-data.md has the file format."
)


@tasks.command("import")
def import_tasks(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|reasoning-gym:NAME", help="A JSONL file, one task per line; or a family, see below."
        ),
    ],
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Import tasks from a file or from reasoning-gym. Importing again changes nothing.

    A bad line rejects the whole file. `reasoning-gym:` lists the families;
    `reasoning-gym:NAME?size=100&heldout=20&seed=0` generates tasks of one family. Add the family's own settings to the
    query (`&max_terms=4`).
    """
    from services.cli.commands import reasoning

    if source == reasoning.PREFIX:
        names = reasoning.list_families()
        show(list(names), as_json, lambda: typer.echo("\n".join(names)))
        return
    made = None if not source.startswith(reasoning.PREFIX) else reasoning.make_tasks(reasoning.parse(source))
    with api_of(home, url) as api:
        done = starter.import_file(api, Path(source)) if made is None else starter.import_tasks(api, made)
    result: JsonObject = {"num_created": done.num_created, "num_existing": done.num_existing}
    show(result, as_json, lambda: typer.echo(f"{done.num_created} new tasks, {done.num_existing} already imported"))
    for note in done.notes:
        typer.echo(note, err=True)


@tasks.command("list")
def list_tasks(
    split: Annotated[Split | None, typer.Option(help="Filter by split.")] = None,
    domain: Annotated[str | None, typer.Option(help="Filter by domain.")] = None,
    family: Annotated[str | None, typer.Option(help="Filter by family.")] = None,
    home: Home = None,
    url: Url = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List tasks, newest first."""
    query = {"split": split.value if split else None, "domain": domain, "family": family}
    list_page("/v1/tasks", home, url, limit, as_json, ("id", "key", "domain", "family", "split"), query)


@tasks.command("show")
def show_task(task_id: TaskId, home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """Show one task."""
    with api_of(home, url) as api:
        task = api.get(f"/v1/tasks/{task_id.find(api)}", Task)

    def words() -> None:
        typer.echo(f"{task.key}  {task.domain}  {task.split.value}  family {task.family}")
        for message in task.messages:
            typer.echo(f"--- {message.role}\n{message.content}")
        typer.echo(f"--- metadata: {', '.join(task.metadata) or 'none'}")

    show(task, as_json, words)
