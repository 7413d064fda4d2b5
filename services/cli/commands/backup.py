"""`preceptor backup` and `preceptor restore`."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from services.cli.options import AsJson, Home, layout_of, show
from services.cli.output.progress import Progress
from services.local.layout import given_database_url


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("backup")(make_backup)
    app.command("restore")(restore)


def make_backup(
    target: Annotated[Path, typer.Argument(help="A new folder, or a new file ending in .tar.")],
    home: Home = None,
    with_secrets: Annotated[
        bool,
        typer.Option(
            "--with-secrets",
            help="Include the signing secrets of experts, and the secrets and key of this installation.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Back up the database and the weights, without the base model; the loop may keep running.

    Exit status 1, with the backup kept, if weights needed to continue training or serving are damaged.
    """
    from services.local import installation
    from services.local.care import backup

    progress = Progress(Console(stderr=as_json))
    found = installation.find(layout_of(home), os.environ)
    manifest = backup.make(found, target.absolute(), with_secrets=with_secrets, say=progress.say)
    size = sum(entry.num_bytes for entry in manifest.files.values())

    def words() -> None:
        for line in manifest.lineages:
            typer.echo(f"lineage {line.name}: update {line.num_updates}, serving {line.serving or 'none'}")
        typer.echo(f"{len(manifest.files)} files, {size / 1e6:.1f} MB, {sum(manifest.rows.values())} rows: {target}")

    show(manifest, as_json, words)
    if manifest.damaged:
        raise typer.Exit(1)


def restore(
    source: Annotated[Path, typer.Argument(help="The folder or .tar file of a backup.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Restore a backup into an empty data folder, and an empty database if DATABASE_URL names one."""
    from services.local.care import restore as restoring

    progress = Progress(Console(stderr=as_json))
    layout, database_url = layout_of(home), given_database_url(os.environ)
    manifest = restoring.restore(source.absolute(), layout, database_url, progress.say)

    def words() -> None:
        for line in manifest.lineages:
            typer.echo(f"lineage {line.name}: continues after update {line.num_updates}, with the model {line.model}")
        if database_url is not None:
            typer.echo("Start its processes on that database; you may have to register experts that sign again.")
        elif not manifest.with_secrets:
            typer.echo("The backup has no secrets. Start with an owner's key of the old installation:")
            typer.echo(f"  PRECEPTOR_API_KEY=pk_… preceptor up --home {layout.root}")
            typer.echo("and register experts that sign again, with their secret.")
        else:
            typer.echo(f"Start it: preceptor up --home {layout.root}")

    show(manifest, as_json, words)
