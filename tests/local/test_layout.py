"""The data folder and its secrets."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest

from services.local.layout import (
    FolderIncomplete,
    Layout,
    default_home,
    given_database_url,
    given_redis_url,
    make_folder,
    write_private,
)
from services.local.processes.process import LocalError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_secrets_are_made_once_and_kept_in_a_file_only_we_can_read(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path / "data")
    made = layout.secrets()
    assert mode(layout.secrets_file) == 0o600
    assert Layout.open(tmp_path / "data").secrets() == made
    assert Layout.open(tmp_path / "other").secrets() != made
    assert made.internal_key.get_secret_value() not in repr(made)
    kind, _, key = made.expert_signing_secret.get_secret_value().partition("_")
    assert kind == "whsec"
    assert len(base64.b64decode(key, validate=True)) == 32


def test_the_data_folder_is_closed_and_root_leaves_only_a_way_through(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path / "data")
    assert mode(layout.root) == (0o711 if os.geteuid() == 0 else 0o700)
    for folder in (layout.logs, layout.artifacts, layout.checkpoints, layout.reports):
        assert mode(folder) == 0o700


def test_a_folder_that_a_restore_did_not_finish_is_not_opened(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path / "data")
    layout.incomplete_file.write_text("")
    with pytest.raises(FolderIncomplete, match="was interrupted"):
        Layout.open(tmp_path / "data")


def test_a_folder_that_was_there_keeps_its_permissions(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    make_folder(tmp_path, 0o700)
    assert mode(tmp_path) == 0o750


def test_a_folder_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError, match="cannot be made"):
        make_folder(tmp_path / "file" / "data", 0o700)


def test_the_home_is_the_one_that_is_named_else_below_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_home({}) == Path("/home/somebody/.local/share/preceptor")
    assert default_home({"PRECEPTOR_HOME": "/srv/preceptor"}) == Path("/srv/preceptor")


def test_servers_named_in_the_environment_are_found_under_both_names() -> None:
    assert given_database_url({}) is None
    assert given_redis_url({"REDIS_URL": ""}) is None
    assert given_database_url({"DATABASE_URL": "postgresql://a/b"}) == "postgresql://a/b"
    assert given_redis_url({"REDIS_URL": "redis://a", "PRECEPTOR_REDIS_URL": "redis://b"}) == "redis://b"


def test_servers_named_by_secrets_in_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "database").mkdir()
    (tmp_path / "database" / "preceptor_database_url").write_text("postgresql://kept/in-a-file\n")
    environ = {"PRECEPTOR_SECRETS_DIR": str(tmp_path)}
    assert given_database_url(environ) == "postgresql://kept/in-a-file"
    assert given_redis_url(environ) is None
    assert given_database_url({**environ, "DATABASE_URL": "postgresql://a/b"}) == "postgresql://a/b"


def test_a_private_file_replaces_the_old_one_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_private(tmp_path / "kept", "old")
    write_private(tmp_path / "kept", "new")
    assert (tmp_path / "kept").read_text() == "new"
    assert mode(tmp_path / "kept") == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
