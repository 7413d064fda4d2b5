"""A backup: one consistent picture of the database and the weights its rows name, taken while the loop runs.

    BACKUP/manifest.json          its contents: versions, migration, rows per table, the sha256 of every file
    BACKUP/database.dump          pg_dump's custom format, without the experts' rows
    BACKUP/experts.copy           those rows (COPY, text); their signing secrets only on request
    BACKUP/artifacts/SHA256       weights of policy versions
    BACKUP/checkpoints/LINEAGE/SHA256
    BACKUP/settings.json          the PRECEPTOR_* variables that hold no secret, for a person to read
    BACKUP/secrets.json, credentials.json     on request only

Dump, experts and counts are read in one snapshot. Weights never change under their address, so they are copied beside
it; if a checkpoint was pruned before it was copied, the backup starts over. Weights that are damaged on the disk do not
keep the rest from being saved. The manifest is written last, and the backup gets its name only then, so an interrupted
backup never looks like one.

Not in it: the base model (the manifest says which), the broker's messages (hints), logs and reports.
"""

import json
import os
import shutil
import tarfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import psutil
import psycopg
from psycopg import sql
from psycopg.rows import TupleRow
from pydantic import AwareDatetime, BaseModel, ConfigDict

from services.local.installation import Installation
from services.local.processes.process import LocalError
from services.local.servers import pg_programs
from services.local.servers.postgres import EmbeddedPostgres
from services.policy.artifacts import ArtifactDamaged, ArtifactNotFound, ArtifactRefused, ArtifactStore, hash_file
from services.runtime.errors import InvalidInput
from services.runtime.version import VERSION
from services.store.core import migrate
from services.store.core.connecting import LONG, connect

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
DUMP: Final = "database.dump"
EXPERTS: Final = "experts.copy"
SETTINGS: Final = "settings.json"
SECRET_FILES: Final = ("secrets.json", "credentials.json")
SECRET_COLUMN: Final = "signing_secret"  # noqa: S105 - the name of a column
SECRET_WORDS: Final = ("KEY", "SECRET", "PASSWORD", "TOKEN", "_URL")
TRIES: Final = 5
"""Snapshots taken before giving up on a trainer that prunes faster than we copy."""

Say = Callable[[str], None]


class BackedUpFile(BaseModel):
    """One file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    num_bytes: int


class LineageEntry(BaseModel):
    """One lineage, with the facts needed to continue it. base_sha256: of the model, which is not in the backup."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    model: str
    base_sha256: str
    num_updates: int
    checkpoint_sha256: str | None
    serving: str | None


class Manifest(BaseModel):
    """The contents of a backup.

    absent: weights that rows name and that training and serving do without: deleted by design, or damaged. damaged:
    those they would go on from and that could not be copied, and why.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = FORMAT
    made_at: AwareDatetime
    preceptor: str
    postgres: str
    migration: str
    with_secrets: bool
    lineages: list[LineageEntry]
    rows: dict[str, int]
    files: dict[str, BackedUpFile]
    absent: list[str]
    damaged: dict[str, str] = {}


class BackupRefused(InvalidInput):
    """The place for the backup is taken, or there is no data to back up."""

    title = "No backup was made"


class BackupFailed(LocalError):
    """The backup could not be written; no part of it is left."""

    title = "No backup was made"


class _Pruned(Exception):
    """The checkpoint to continue from was pruned before it was copied."""


def make(installation: Installation, target: Path, *, with_secrets: bool, say: Say) -> Manifest:
    """Write a backup to `target`, a folder, or one file if its name ends in `.tar`.

    Weights that cannot be copied are reported and left out; the manifest's `damaged` names those that training needs.
    Errors: BackupRefused, DatabaseUrlWrong (422), BackupFailed, ProgramFailed, LocalError.
    """
    installation.layout.require_complete()
    if target.exists():
        raise BackupRefused(f"{target} exists", hint="Name a new folder, or a new file ending in .tar.")
    if not target.parent.is_dir():
        raise BackupRefused(f"the folder {target.parent} does not exist")
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    with ExitStack() as stack:
        url = _open_database(installation, stack, say)
        stack.callback(shutil.rmtree, partial, ignore_errors=True)
        try:
            manifest = _take_again(installation, url, partial, with_secrets, say)
            _finish(partial, target)
        except OSError as error:
            raise BackupFailed(
                f"{target} cannot be written: {_reason(error)}",
                hint="Name a place that can be written and has room for the database and the weights.",
            ) from error
        except psycopg.errors.UndefinedTable as error:
            raise BackupRefused(
                f"this is not a Preceptor database: {error.diag.message_primary}", hint="Is DATABASE_URL right?"
            ) from error
    for what in manifest.damaged.values():
        say(f"DAMAGED, and not in the backup: {what}")
    return manifest


def _reason(error: OSError) -> str:
    """Why, in the words of the system; copying a folder collects its errors."""
    collected = error.args[0] if isinstance(error, shutil.Error) else None
    return str(collected[0][2]) if isinstance(collected, list) and collected else error.strerror or str(error)


def _take_again(installation: Installation, url: str, folder: Path, with_secrets: bool, say: Say) -> Manifest:
    """Take the picture, and again with a newer snapshot as long as a checkpoint was pruned before it was copied."""
    for attempt in range(1, TRIES + 1):
        try:
            return _take(installation, url, folder, with_secrets, say, is_last=attempt == TRIES)
        except _Pruned as error:
            say(f"{error}; again, with a newer snapshot")
    raise AssertionError("the last try takes what is there")


def _open_database(installation: Installation, stack: ExitStack, say: Say) -> str:
    """The database's URL; of an installation that is down the embedded server is started for the time being."""
    if installation.database_url is not None:
        return installation.database_url
    if not (installation.layout.postgres / "pgdata").exists():
        raise BackupRefused(
            f"there is no database on {installation.layout.root}, and DATABASE_URL names none",
            hint="Name the data folder with --home.",
        )
    say("the stack is down: starting its Postgres for the backup")
    return stack.enter_context(EmbeddedPostgres(installation.layout.postgres)).url


def _take(
    installation: Installation, url: str, folder: Path, with_secrets: bool, say: Say, *, is_last: bool
) -> Manifest:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    with connect(pg_programs.plain_url(url), LONG) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        connection.execute("SET LOCAL statement_timeout = 0")
        (snapshot,) = _one(connection, "SELECT pg_export_snapshot()")
        lineages = _read_lineages(connection)
        say(f"copying weights: {sum(line.num_updates for line in lineages)} updates in the ledger")
        weights = _Weights(installation.layout.root, folder, say)
        weights.copy_versions(connection)
        for line in lineages:
            weights.copy_checkpoints(connection, line, is_last=is_last)
        say("dumping the database")
        major = connection.info.server_version // 10_000
        pg_programs.run(
            "pg_dump",
            major,
            url,
            [
                "--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot}",
                "--exclude-table-data=expert", f"--file={folder / DUMP}",
            ],
        )  # fmt: skip
        _copy_experts(connection, folder / EXPERTS, with_secrets)
        rows = _count_rows(connection)
        (migration,) = _one(connection, "SELECT version_num FROM alembic_version")
        if not migrate.knows(str(migration)):
            say(f"warning: the schema {migration} is newer than this version of Preceptor, which could not restore it")
        (postgres,) = _one(connection, "SELECT current_setting('server_version')")
    (folder / SETTINGS).write_text(json.dumps(_read_settings(installation), indent=2, sort_keys=True) + "\n")
    if with_secrets:
        for name in SECRET_FILES:
            if (installation.layout.root / name).exists():
                shutil.copyfile(installation.layout.root / name, folder / name)
    manifest = Manifest(
        made_at=datetime.now(UTC),
        preceptor=VERSION,
        postgres=str(postgres),
        migration=str(migration),
        with_secrets=with_secrets,
        lineages=lineages,
        rows=rows,
        files=list_files(folder),
        absent=sorted(weights.absent),
        damaged=weights.damaged,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    return manifest


def list_files(folder: Path) -> dict[str, BackedUpFile]:
    """Every file below a backup but the manifest, by its path."""
    return {
        path.relative_to(folder).as_posix(): BackedUpFile(sha256=hash_file(path), num_bytes=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def _read_lineages(connection: psycopg.Connection[TupleRow]) -> list[LineageEntry]:
    found = connection.execute(
        "SELECT l.name, l.model, l.base_sha256, coalesce(u.number, 0),"
        " coalesce(f.checkpoint_sha256, u.checkpoint_sha256),"
        " (SELECT v.name FROM policy_version v WHERE v.lineage_id = l.id AND v.status = 'serving')"
        " FROM lineage l LEFT JOIN LATERAL (SELECT number, checkpoint_sha256, applied_at FROM update"
        "  WHERE lineage_id = l.id AND status = 'applied' ORDER BY number DESC LIMIT 1) u ON true"
        " LEFT JOIN LATERAL (SELECT checkpoint_sha256 FROM fallback WHERE lineage_id = l.id AND after_update = u.number"
        "  AND created_at >= u.applied_at ORDER BY id DESC LIMIT 1) f ON true ORDER BY l.name"
    )
    return [
        LineageEntry(
            name=name, model=model, base_sha256=base, num_updates=number, checkpoint_sha256=checkpoint, serving=serving
        )
        for name, model, base, number, checkpoint, serving in found
    ]


class _Weights:
    """Copies the weights that the snapshot's rows name and the disk has. absent, damaged: as in the manifest."""

    def __init__(self, home: Path, folder: Path, say: Say) -> None:
        self.absent: set[str] = set()
        self.damaged: dict[str, str] = {}
        self._home = home
        self._folder = folder
        self._say = say

    def copy_versions(self, connection: psycopg.Connection[TupleRow]) -> None:
        """Copy the weights of policy versions."""
        versions = connection.execute(
            "SELECT artifact_sha256, bool_or(status = 'serving') FROM policy_version"
            " WHERE artifact_sha256 IS NOT NULL GROUP BY 1"
        )
        for address, serves in versions:
            what = "weights of the serving version" if serves else "weights of a version"
            self._copy(ArtifactStore(self._home / "artifacts"), self._folder / "artifacts", address, what, serves)

    def copy_checkpoints(self, connection: psycopg.Connection[TupleRow], line: LineageEntry, *, is_last: bool) -> None:
        """Copy a lineage's checkpoints. Raises _Pruned when the last one is gone, unless this is the last try."""
        source = ArtifactStore(self._home / "checkpoints" / line.name)
        target = self._folder / "checkpoints" / line.name
        named = connection.execute(
            "SELECT u.number, u.checkpoint_sha256 FROM update u JOIN lineage l ON l.id = u.lineage_id"
            " WHERE l.name = %s AND u.status = 'applied'"
            " UNION SELECT f.after_update, f.checkpoint_sha256 FROM fallback f JOIN lineage l ON l.id = f.lineage_id"
            " WHERE l.name = %s ORDER BY 1 DESC",
            (line.name, line.name),
        )
        for number, address in named:
            what = f"checkpoint of update {number} of {line.name}"
            is_needed = address == line.checkpoint_sha256
            self._copy(source, target, address, what, is_needed)
            if address in self.damaged and not source.contains(address) and not is_last:
                raise _Pruned(f"the {what} was not there any more")

    def _copy(self, source: ArtifactStore, target: Path, address: str, what: str, is_needed: bool) -> None:
        """Copy one artifact, whose bytes are checked on both sides, or note why not."""
        try:
            if (stored := ArtifactStore(target).store(source.path(address))) == address:
                return
            shutil.rmtree(target / stored)
            raise ArtifactDamaged(f"{address} changed while it was copied")
        except (ArtifactNotFound, ArtifactDamaged, ArtifactRefused, OSError):
            why = find_fault(source, address)
            if why is None:
                raise  # the weights are whole: it is the backup's place that failed
        if is_needed:
            self.damaged[address] = f"{what}: {why}"
            return
        self.absent.add(address)
        if source.contains(address):
            self._say(f"warning: left out, because it is not needed to continue: {what}: {why}")


def find_fault(store: ArtifactStore, address: str) -> str | None:
    """The fault of a stored artifact, in words; None when it is whole."""
    try:
        store.path(address)
    except (ArtifactNotFound, ArtifactDamaged) as error:
        return error.detail
    except OSError as error:  # it went while it was read, or the disk is failing
        return f"{address} cannot be read: {error.strerror or error}"
    return None


def expert_columns(connection: psycopg.Connection[TupleRow]) -> list[str]:
    """The columns of the experts' table, in order."""
    found = connection.execute(
        "SELECT column_name FROM information_schema.columns"
        " WHERE table_schema = current_schema() AND table_name = 'expert' ORDER BY ordinal_position"
    )
    return [name for (name,) in found]


def _copy_experts(connection: psycopg.Connection[TupleRow], path: Path, with_secrets: bool) -> None:
    columns = [
        sql.SQL("NULL") if name == SECRET_COLUMN and not with_secrets else sql.Identifier(name)
        for name in expert_columns(connection)
    ]
    query = sql.SQL("COPY (SELECT {} FROM expert) TO STDOUT").format(sql.SQL(", ").join(columns))
    with connection.cursor() as cursor, cursor.copy(query) as copy, path.open("wb") as file:
        for block in copy:
            file.write(block)


def _count_rows(connection: psycopg.Connection[TupleRow]) -> dict[str, int]:
    tables = connection.execute(
        "SELECT table_name FROM information_schema.tables"
        " WHERE table_schema = current_schema() AND table_type = 'BASE TABLE' ORDER BY table_name"
    ).fetchall()
    return {name: count_rows(connection, name) for (name,) in tables}


def count_rows(connection: psycopg.Connection[TupleRow], table: str) -> int:
    """How many rows a table has."""
    (number,) = _one(connection, sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table)))
    return int(str(number))


def _one(connection: psycopg.Connection[TupleRow], query: "sql.Composed | str") -> tuple[object, ...]:
    row = connection.execute(query if isinstance(query, sql.Composed) else sql.SQL(query)).fetchone()
    assert row is not None
    return row


def _read_settings(installation: Installation) -> dict[str, str]:
    """The variables the running stack was started with, or ours; none that may hold a secret."""
    environ: Mapping[str, str] = os.environ
    if installation.run is not None:
        try:
            environ = psutil.Process(installation.run.supervisor_pid).environ()
        except psutil.Error:
            environ = os.environ
    return {
        name: value
        for name, value in environ.items()
        if name.startswith("PRECEPTOR_") and not any(word in name for word in SECRET_WORDS)
    }


def _finish(partial: Path, target: Path) -> None:
    """Give the backup its name: everything of it is on disk by then."""
    if target.suffix != ".tar":
        for path in partial.rglob("*"):
            _sync(path)
        partial.rename(target)
        _sync(target.parent)
        return
    whole = partial.with_name(partial.name + ".tar")
    try:
        with os.fdopen(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                archive.add(partial, arcname=".")
            file.flush()
            os.fsync(file.fileno())
        whole.rename(target)
        _sync(target.parent)
    finally:
        whole.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
