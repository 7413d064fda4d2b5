"""A backup is restored and goes on: rows, weights, secrets, and what is refused."""

import errno
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import func, select, text

from services.local.care import backup, restore
from services.local.installation import Installation, find
from services.local.layout import FolderIncomplete, Layout
from services.local.processes.process import LocalError
from services.local.servers import pg_programs
from services.local.servers.pg_programs import plain_url
from services.local.servers.postgres import EmbeddedPostgres
from services.policy.artifacts import ArtifactStore
from services.store.core import migrate
from services.store.core.transaction import Store
from services.store.ledger import policies, updates
from services.store.tables.loop import ExpertRow
from services.store.tables.schema import METADATA
from tests.conftest import execute
from tests.rows import start_update
from tests.store.conftest import World, store, world
from trainer.step.state import prune

pytestmark = pytest.mark.integration
__all__ = ["store", "world"]


def quiet(line: str) -> None:
    """Nothing is said."""


@pytest.fixture
def empty_database(postgres_server: EmbeddedPostgres, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database without a schema."""
    name = f"empty_{abs(hash(request.node.name))}"
    execute(postgres_server, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    yield postgres_server.url_of(name)
    execute(postgres_server, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def home(tmp_path: Path) -> Layout:
    """The data folder of what is backed up."""
    return Layout.open(tmp_path / "home")


@pytest.fixture
def installation(home: Layout, database_url: str) -> Installation:
    """An installation whose database is somebody else's."""
    return find(home, {"DATABASE_URL": database_url})


def store_weights(folder: Path, scratch: Path, content: str) -> str:
    scratch.mkdir(parents=True)
    (scratch / "weights").write_text(content)
    return ArtifactStore(folder).store(scratch)


@pytest.fixture
def weights(store: Store, world: World, home: Layout, tmp_path: Path) -> dict[str, str]:
    """One applied update with its checkpoint, and two versions: one whose weights were deleted, one that serves."""
    made = {
        "checkpoint": store_weights(home.checkpoints / "main", tmp_path / "a", "checkpoint"),
        "serving": store_weights(home.artifacts, tmp_path / "b", "serving"),
        "gone": "d" * 64,
    }
    owner = world.lineage_id
    with store.transaction() as session:
        expert = world.expert(session, "signs")
        expert.signing_secret = "whsec_c2VjcmV0"  # noqa: S105
        world.drawn(session, world.task(session))
        row = start_update(session, world.lineage_id, owner, [])
        updates.apply(session, row.id, owner, checkpoint_sha256=made["checkpoint"], metrics={}, contributions=[])
        for name in ("gone", "serving"):
            version = policies.add_candidate(session, world.lineage_id, artifact_sha256=made[name], update_number=1)
            policies.serve(session, version.id)
    return made


def count_all(url: str) -> dict[str, int]:
    opened = Store(url, pool_size=1)
    with opened.transaction() as session:
        counts = {
            name: session.scalar(select(func.count()).select_from(table)) or 0
            for name, table in METADATA.tables.items()
        }
    opened.close()
    return counts


def test_what_is_restored_has_the_same_rows_and_weights(
    installation: Installation, weights: dict[str, str], database_url: str, empty_database: str, tmp_path: Path
) -> None:
    manifest = backup.make(installation, tmp_path / "backup", with_secrets=False, say=quiet)
    target = Layout(tmp_path / "restored")
    restore.restore(tmp_path / "backup", target, empty_database, quiet)
    assert count_all(empty_database) == count_all(database_url)
    assert ArtifactStore(target.checkpoints / "main").path(weights["checkpoint"]).is_dir()
    assert ArtifactStore(target.artifacts).path(weights["serving"]).is_dir()
    assert manifest.absent == [weights["gone"]]
    [line] = manifest.lineages
    assert (line.num_updates, line.checkpoint_sha256) == (1, weights["checkpoint"])


def test_a_backup_of_an_older_version_is_migrated_when_it_is_restored(
    installation: Installation,
    weights: dict[str, str],
    empty_database: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    manifest = backup.make(installation, tmp_path / "backup", with_secrets=False, say=quiet)
    newer = request.getfixturevalue("next_schema")
    said: list[str] = []
    restore.restore(tmp_path / "backup", Layout(tmp_path / "restored"), empty_database, said.append)
    assert f"migrating from {manifest.migration} to {newer}" in said
    opened = Store(empty_database, pool_size=1)
    with opened.transaction() as session:
        assert migrate.find_revision(session) == newer
    opened.close()


def test_folders_that_are_there_and_empty_are_filled_as_volumes_are(
    installation: Installation, weights: dict[str, str], empty_database: str, tmp_path: Path
) -> None:
    backup.make(installation, tmp_path / "backup", with_secrets=False, say=quiet)
    target = Layout.open(tmp_path / "restored")
    restore.restore(tmp_path / "backup", target, empty_database, quiet)
    assert ArtifactStore(target.artifacts).path(weights["serving"]).is_dir()


REFUSED: Final = (
    'pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter "transaction_timeout"'
)


@pytest.mark.parametrize(
    ("said", "is_well"),
    [
        (
            f"{REFUSED}\nCommand was: SET transaction_timeout = 0;\npg_restore: warning: errors ignored on restore: 1",
            True,
        ),
        (f"{REFUSED}\npg_restore: error: could not execute query: ERROR:  no room", False),
        ("pg_restore: warning: errors ignored on restore: 1", False),
    ],
)
def test_only_what_an_older_server_does_not_know_is_no_failure(
    said: str, is_well: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "pg_restore"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(pg_programs, "find", lambda name, major: program)
    with nullcontext() if is_well else pytest.raises(pg_programs.ProgramFailed):
        pg_programs.run("pg_restore", 15, "postgresql://nobody@127.0.0.1/none", [])


def test_the_restored_database_refuses_what_the_first_one_refused(
    installation: Installation, weights: dict[str, str], empty_database: str, tmp_path: Path
) -> None:
    backup.make(installation, tmp_path / "backup", with_secrets=False, say=quiet)
    restore.restore(tmp_path / "backup", Layout(tmp_path / "restored"), empty_database, quiet)
    with psycopg.connect(plain_url(empty_database)) as connection, pytest.raises(psycopg.Error, match="status"):
        connection.execute("UPDATE rollout SET status = 'ready'; UPDATE rollout SET status = 'open'")


@pytest.mark.parametrize("with_secrets", [False, True])
def test_secrets_are_in_a_backup_only_on_request(
    installation: Installation, weights: dict[str, str], empty_database: str, tmp_path: Path, with_secrets: bool
) -> None:
    installation.layout.secrets()
    backup.make(installation, tmp_path / "backup", with_secrets=with_secrets, say=quiet)
    everything = b"".join(path.read_bytes() for path in (tmp_path / "backup").rglob("*") if path.is_file())
    assert (b"whsec_" in everything) is with_secrets
    assert (tmp_path / "backup" / "secrets.json").exists() is with_secrets
    restore.restore(tmp_path / "backup", Layout(tmp_path / "restored"), empty_database, quiet)
    opened = Store(empty_database, pool_size=1)
    with opened.transaction() as session:
        secret = session.scalars(select(ExpertRow.signing_secret)).one()
    opened.close()
    assert (secret is not None) is with_secrets


def test_a_backup_in_one_file_restores_as_a_folder_does(
    installation: Installation, weights: dict[str, str], database_url: str, empty_database: str, tmp_path: Path
) -> None:
    backup.make(installation, tmp_path / "backup.tar", with_secrets=False, say=quiet)
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    restore.restore(tmp_path / "backup.tar", Layout(tmp_path / "restored"), empty_database, quiet)
    assert count_all(empty_database) == count_all(database_url)


def corrupt(folder: Path) -> None:
    path = folder / backup.DUMP
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def remove(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints")


def add(folder: Path) -> None:
    (folder / "artifacts" / "stranger").write_text("x")


def cut_off(folder: Path) -> None:
    (folder / backup.MANIFEST).unlink()


def come_from_the_future(folder: Path) -> None:
    manifest = json.loads((folder / backup.MANIFEST).read_text())
    (folder / backup.MANIFEST).write_text(json.dumps(manifest | {"migration": "29990101_later"}))


def have_another_format(folder: Path) -> None:
    manifest = json.loads((folder / backup.MANIFEST).read_text())
    (folder / backup.MANIFEST).write_text(json.dumps(manifest | {"format": 2, "preceptor": "9.0", "extra": 1}))


def have_no_settings(folder: Path) -> None:
    manifest = json.loads((folder / backup.MANIFEST).read_text())
    del manifest["files"][backup.SETTINGS]
    (folder / backup.MANIFEST).write_text(json.dumps(manifest))
    (folder / backup.SETTINGS).unlink()


def have_a_folder_for_a_manifest(folder: Path) -> None:
    (folder / backup.MANIFEST).unlink()
    (folder / backup.MANIFEST).mkdir()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (corrupt, "damaged: database.dump"),
        (remove, "damaged: checkpoints"),
        (add, "damaged: artifacts/stranger"),
        (cut_off, "there is no manifest.json"),
        (come_from_the_future, "29990101_later is newer than this version of Preceptor"),
        (have_another_format, "format 2 is newer than this version of Preceptor"),
        (have_no_settings, "does not name settings.json"),
        (have_a_folder_for_a_manifest, "manifest.json cannot be read: Is a directory"),
    ],
)
def test_a_backup_that_is_not_whole_changes_nothing(
    installation: Installation,
    weights: dict[str, str],
    empty_database: str,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    said: str,
) -> None:
    backup.make(installation, tmp_path / "backup", with_secrets=False, say=quiet)
    spoil(tmp_path / "backup")
    with pytest.raises(restore.RestoreRefused, match=said):
        restore.restore(tmp_path / "backup", Layout(tmp_path / "restored"), empty_database, quiet)
    assert not (tmp_path / "restored").exists()
    with psycopg.connect(plain_url(empty_database)) as connection:
        tables = connection.execute("SELECT 1 FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert tables == []


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_an_archive_that_was_cut_off_is_said_to_be_one(tmp_path: Path, kind: str) -> None:
    (tmp_path / "noise").write_bytes(os.urandom(100_000))
    with tarfile.open(tmp_path / "whole", f"w:{kind}") as archive:  # type: ignore[call-overload]
        archive.add(tmp_path / "noise")
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:50_000])
    with pytest.raises(restore.RestoreRefused, match="readable"):
        restore.restore(tmp_path / "cut", Layout(tmp_path / "restored"), None, quiet)


def test_a_data_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(restore.RestoreRefused, match="is not a folder"):
        restore.restore(tmp_path, Layout(tmp_path / "file"), None, quiet)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../outside", tarfile.REGTYPE),
        ("/outside", tarfile.REGTYPE),
        ("link", tarfile.SYMTYPE),
        ("pipe", tarfile.FIFOTYPE),
    ],
)
def test_an_archive_with_anything_but_files_of_its_own_is_refused(name: str, kind: bytes, tmp_path: Path) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.addfile(member)
    with pytest.raises(restore.RestoreRefused, match="not a file of a backup"):
        restore.restore(tmp_path / "evil.tar", Layout(tmp_path / "home"), None, quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.tar"]


def test_nothing_that_exists_is_overwritten(
    installation: Installation, weights: dict[str, str], database_url: str, empty_database: str, tmp_path: Path
) -> None:
    backup.make(installation, tmp_path / "backup", with_secrets=False, say=quiet)
    with pytest.raises(backup.BackupRefused):
        backup.make(installation, tmp_path / "backup", with_secrets=False, say=quiet)
    with pytest.raises(restore.RestoreRefused, match="not empty"):
        restore.restore(tmp_path / "backup", installation.layout, empty_database, quiet)
    with pytest.raises(restore.RestoreRefused, match="not empty"):
        restore.restore(tmp_path / "backup", Layout(tmp_path / "restored"), database_url, quiet)


def damage(folder: Path) -> None:
    (folder / "weights").write_text("cut off")


@pytest.mark.parametrize("spoil", [damage, shutil.rmtree])
def test_weights_that_are_needed_and_damaged_or_gone_are_said_and_the_rest_is_saved(
    installation: Installation,
    weights: dict[str, str],
    database_url: str,
    empty_database: str,
    tmp_path: Path,
    spoil: Callable[[Path], None],
) -> None:
    spoil(installation.layout.checkpoints / "main" / weights["checkpoint"])
    spoil(installation.layout.artifacts / weights["serving"])
    said: list[str] = []
    manifest = backup.make(installation, tmp_path / "backup", with_secrets=False, say=said.append)
    assert manifest.damaged.keys() == {weights["checkpoint"], weights["serving"]}
    assert "checkpoint of update 1 of main" in manifest.damaged[weights["checkpoint"]]
    assert len([line for line in said if line.startswith("DAMAGED")]) == 2
    said.clear()
    restore.restore(tmp_path / "backup", Layout(tmp_path / "restored"), empty_database, said.append)
    assert count_all(empty_database) == count_all(database_url)
    assert len([line for line in said if line.startswith("warning")]) == 2


def test_an_old_version_whose_weights_are_damaged_is_left_out_with_a_warning(
    installation: Installation, weights: dict[str, str], tmp_path: Path
) -> None:
    (installation.layout.artifacts / weights["gone"]).mkdir()
    damage(installation.layout.artifacts / weights["gone"])
    said: list[str] = []
    manifest = backup.make(installation, tmp_path / "backup", with_secrets=False, say=said.append)
    assert (manifest.absent, manifest.damaged) == ([weights["gone"]], {})
    assert [line for line in said if line.startswith("warning")] != []


def test_what_is_pruned_while_it_is_copied_is_taken_again(
    installation: Installation, weights: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(installation.layout.checkpoints / "main")
    path = ArtifactStore.path

    def prune_meanwhile(self: ArtifactStore, named: str) -> Path:
        found = path(self, named)
        prune(store, [])
        return found

    monkeypatch.setattr(ArtifactStore, "path", prune_meanwhile)
    said: list[str] = []
    manifest = backup.make(installation, tmp_path / "backup", with_secrets=False, say=said.append)
    assert manifest.damaged.keys() == {weights["checkpoint"]}
    assert len([line for line in said if "with a newer snapshot" in line]) == backup.TRIES - 1


def test_a_place_that_cannot_be_written_is_said_and_the_weights_are_not_blamed(
    installation: Installation, weights: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(*given: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for place in ("shutil.copytree", "shutil.copyfile", "services.local.care.backup.tarfile.open"):
        with monkeypatch.context() as patched:
            patched.setattr(place, fill_up)
            with pytest.raises(backup.BackupFailed, match=r"backup\.tar cannot be written: .*No space left on device$"):
                backup.make(installation, tmp_path / "backup.tar", with_secrets=False, say=quiet)
    assert [path.name for path in tmp_path.iterdir() if "backup" in path.name] == []


def test_a_database_that_is_not_ours_is_no_installation(empty_database: str, home: Layout, tmp_path: Path) -> None:
    foreign = find(home, {"DATABASE_URL": empty_database})
    with pytest.raises(backup.BackupRefused, match="not a Preceptor database"):
        backup.make(foreign, tmp_path / "backup", with_secrets=False, say=quiet)


def test_a_database_of_a_newer_version_is_backed_up_with_a_warning(
    installation: Installation, weights: dict[str, str], store: Store, tmp_path: Path
) -> None:
    with store.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '29990101_later'"))
    said: list[str] = []
    backup.make(installation, tmp_path / "backup", with_secrets=False, say=said.append)
    assert any("29990101_later is newer than this version" in line for line in said)


def test_nothing_starts_on_what_a_restore_left_that_did_not_come_to_its_end(
    installation: Installation,
    weights: dict[str, str],
    empty_database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backup.make(installation, tmp_path / "backup", with_secrets=False, say=quiet)
    target = Layout(tmp_path / "restored")
    seen: list[bool] = []

    def fail(*given: object) -> None:
        seen.append(target.incomplete_file.exists())  # a kill would leave it so
        raise LocalError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(restore, "_fill_database", fail)
        with pytest.raises(LocalError, match="no room"):
            restore.restore(tmp_path / "backup", target, empty_database, quiet)
    assert seen == [True]
    with pytest.raises(FolderIncomplete, match="was interrupted"):
        Layout.open(target.root)
    with pytest.raises(FolderIncomplete):
        backup.make(find(target, {"DATABASE_URL": empty_database}), tmp_path / "again", with_secrets=False, say=quiet)
    shutil.rmtree(target.root)
    restore.restore(tmp_path / "backup", target, empty_database, quiet)
    Layout.open(target.root)


def test_a_stack_that_is_down_is_backed_up_and_restored_with_servers_of_its_own(server_folder: Path) -> None:
    from services.store.loop import lineages

    home = Layout.open(server_folder / "down")
    with EmbeddedPostgres(home.postgres, durable=False) as server:
        migrate.upgrade(server.url)
        opened = Store(server.url, pool_size=1)
        with opened.transaction() as session:
            lineages.ensure(session, "main", "tiny", "b" * 64, "a" * 64, 9)
        opened.close()
    backup.make(find(home, {}), server_folder / "backup", with_secrets=False, say=quiet)
    target = Layout(server_folder / "restored")
    restore.restore(server_folder / "backup", target, None, quiet)
    with EmbeddedPostgres(target.postgres, durable=False) as server:
        assert count_all(server.url)["lineage"] == 1
