"""Restoring a backup into an empty data folder and an empty database. Existing data is never overwritten.

The manifest is checked first, with every file it names: a damaged backup changes nothing. The restored rows are
counted before the schema is brought to this version's; until then the data folder is marked, and no process starts on
it: the folder of a failed restore must be deleted. Training continues from the last applied update of the backup.
"""

import gzip
import lzma
import shutil
import tarfile
import tempfile
import zlib
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Final

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow
from pydantic import BaseModel, ValidationError

from services.local.care.backup import (
    DUMP,
    EXPERTS,
    FORMAT,
    MANIFEST,
    SECRET_FILES,
    SETTINGS,
    Manifest,
    Say,
    count_rows,
    expert_columns,
    list_files,
)
from services.local.layout import Layout, write_private
from services.local.servers import pg_programs
from services.local.servers.postgres import EmbeddedPostgres
from services.policy.artifacts import ArtifactDamaged, ArtifactStore
from services.runtime.errors import InvalidInput
from services.store.core import migrate
from services.store.core.connecting import LONG, connect

SETTINGS_KEPT: Final = "settings-of-backup.json"


class RestoreRefused(InvalidInput):
    """The backup is not whole, or the target is not empty; nothing was changed."""

    title = "Nothing was restored"


class RestoreIncomplete(InvalidInput):
    """The restored data differs from the manifest and must not be used."""

    title = "The restore did not come out right"


def restore(source: Path, layout: Layout, database_url: str | None, say: Say) -> Manifest:
    """Restore a backup to a data folder that is empty or does not exist yet; returns what the backup holds.

    database_url: an empty database to fill, instead of an embedded one.
    Errors: RestoreRefused, RestoreIncomplete, DatabaseUrlWrong (422), ProgramFailed, LocalError.
    """
    if layout.root.exists() and not layout.root.is_dir():
        raise RestoreRefused(f"{layout.root} is not a folder", hint="Name a new data folder with --home.")
    if any(not path.is_dir() or any(path.iterdir()) for path in _list(layout.root)):
        raise RestoreRefused(
            f"{layout.root} is not empty", hint="Name a new data folder with --home; this one stays as it is."
        )
    with ExitStack() as stack:
        folder = _open(source, layout.root, stack)
        say("checking every file against the manifest")
        manifest = check(folder)
        if database_url is not None:
            _require_empty(database_url)
        layout = Layout.open(layout.root)
        # first, and away at the end: a restore that is killed leaves it too
        write_private(
            layout.incomplete_file, "A restore into this folder was interrupted; the folder is incomplete. Delete it.\n"
        )
        _fill_home(folder, manifest, layout)
        if database_url is None:
            say("starting an empty Postgres")
            database_url = stack.enter_context(EmbeddedPostgres(layout.postgres, log=layout.log("postgres"))).url
        say("restoring the database")
        _fill_database(folder, manifest, database_url)
        head = migrate.find_head()
        if manifest.migration != head:
            say(f"migrating from {manifest.migration} to {head}")
            migrate.upgrade(database_url)
    layout.incomplete_file.unlink()
    for what in manifest.damaged.values():
        say(f"warning: the backup has not all that training and serving go on from: {what}")
    return manifest


def _list(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.exists() else []


def check(folder: Path) -> Manifest:
    """The manifest of a backup, with every file verified. Errors: RestoreRefused naming the file that differs."""
    manifest = _read_manifest(folder)
    unnamed = {DUMP, EXPERTS, SETTINGS} - manifest.files.keys()
    if unnamed:
        raise RestoreRefused(f"{MANIFEST} does not name {', '.join(sorted(unnamed))}", hint="Use another backup.")
    found = list_files(folder)
    wrong = sorted(
        {name for name in manifest.files if manifest.files[name] != found.get(name)} | (found.keys() - manifest.files)
    )
    if wrong:
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise RestoreRefused(f"the backup is damaged: {shown}", hint="Use another backup.")
    if not migrate.knows(manifest.migration):
        raise RestoreRefused(
            f"the backup's schema {manifest.migration} is newer than this version of Preceptor",
            hint=f"Restore it with Preceptor {manifest.preceptor} or newer.",
        )
    return manifest


class _Head(BaseModel):
    """A manifest of any format."""

    format: int = FORMAT
    preceptor: str = "that made it"


def _read_manifest(folder: Path) -> Manifest:
    try:
        content = (folder / MANIFEST).read_bytes()
        head = _Head.model_validate_json(content)
        if head.format <= FORMAT:
            return Manifest.model_validate_json(content)
    except FileNotFoundError:
        raise RestoreRefused(f"there is no {MANIFEST}: this is not a backup, or it is incomplete") from None
    except OSError as error:
        raise RestoreRefused(f"{MANIFEST} cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        raise RestoreRefused(f"{MANIFEST} cannot be read: {error.errors(include_url=False)[0]['msg']}") from None
    raise RestoreRefused(
        f"the backup's format {head.format} is newer than this version of Preceptor",
        hint=f"Restore it with Preceptor {head.preceptor} or newer.",
    )


def _open(source: Path, home: Path, stack: ExitStack) -> Path:
    """The backup's folder; that of one file is unpacked on the disk of the data folder, where there must be room."""
    if source.is_dir():
        return source
    if not source.is_file():
        raise RestoreRefused(f"{source} does not exist")
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".preceptor-restore-", dir=place)))
    try:
        with tarfile.open(source) as archive:
            _unpack(archive, folder)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise RestoreRefused(f"{source} is neither a folder nor a readable .tar file: {error}") from None
    return folder


def _unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """Write its files below the folder; a backup has only files. (tarfile's own filter came with Python 3.11.4.)"""
    for member in archive:
        parts = PurePosixPath(member.name).parts
        if member.isdir():
            continue
        if not member.isreg() or not parts or parts[0] == "/" or ".." in parts:
            raise RestoreRefused(
                f"the backup is damaged: {member.name!r} is not a file of a backup", hint="Use another backup."
            )
        target = folder.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = archive.extractfile(member)
        assert content is not None
        with content, target.open("wb") as file:
            shutil.copyfileobj(content, file)


def _require_empty(url: str) -> None:
    with connect(pg_programs.plain_url(url), LONG) as connection:
        tables = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema() LIMIT 1"
        ).fetchone()
    if tables is not None:
        raise RestoreRefused("the database that DATABASE_URL names is not empty", hint="Make a new one, and name that.")


def _fill_home(folder: Path, manifest: Manifest, layout: Layout) -> None:
    places = [(folder / "artifacts", layout.artifacts)]
    places += [(folder / "checkpoints" / line.name, layout.checkpoints / line.name) for line in manifest.lineages]
    for source, target in places:
        for path in sorted(source.iterdir()) if source.is_dir() else ():
            if ArtifactStore(target).store(path) != path.name:
                raise ArtifactDamaged(f"{path} is not what its name says")
    for name in SECRET_FILES:
        if (folder / name).exists():
            write_private(layout.root / name, (folder / name).read_text())
    shutil.copyfile(folder / SETTINGS, layout.root / SETTINGS_KEPT)


def _fill_database(folder: Path, manifest: Manifest, url: str) -> None:
    with connect(pg_programs.plain_url(url), LONG, autocommit=True) as connection:
        major = connection.info.server_version // 10_000

        def fill(section: str) -> None:
            name = connection.info.dbname
            arguments = ["--no-owner", "--no-privileges", f"--section={section}", f"--dbname={name}"]
            pg_programs.run("pg_restore", major, url, [*arguments, folder / DUMP])

        fill("pre-data")
        fill("data")
        _copy_experts(connection, folder / EXPERTS)
        fill("post-data")  # indexes and constraints, over all the rows
        for table, number in manifest.rows.items():
            if (found := count_rows(connection, table)) != number:
                raise RestoreIncomplete(f"the table {table} has {found} rows, the backup had {number}")
        connection.execute("ANALYZE")


def _copy_experts(connection: psycopg.Connection[TupleRow], path: Path) -> None:
    columns = sql.SQL(", ").join(map(sql.Identifier, expert_columns(connection)))
    query = sql.SQL("COPY expert ({}) FROM STDIN").format(columns)
    with connection.cursor() as cursor, cursor.copy(query) as copy, path.open("rb") as file:
        while block := file.read(1 << 20):
            copy.write(block)
