"""The command line against the real api: served on loopback, over a database of the test's own."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog
from fastapi import FastAPI

from services.cli import program
from services.contracts.base import Json, JsonObject
from services.store.core.transaction import Store
from services.store.people import persons
from tests.api.conftest import app, broker, policy_url, settings, store, world
from tests.serving import serve
from tests.store.conftest import World

__all__ = ["app", "broker", "policy_url", "settings", "store", "world"]


@dataclass(frozen=True)
class CommandLine:
    """Runs `preceptor` as its owner would."""

    home: Path
    url: str
    read: Callable[[list[str]], tuple[int, str]]

    def words(self, *arguments: object) -> str:
        """What a command that succeeds prints for people."""
        status, out = self.read([str(a) for a in arguments])
        assert status == 0, out
        return out

    def json(self, *arguments: object) -> JsonObject:
        """What a command that succeeds prints with --json."""
        found = json.loads(self.words(*arguments, "--json"))
        assert isinstance(found, dict)
        return found

    def rows(self, *arguments: object) -> list[JsonObject]:
        """The list a command that succeeds prints with --json."""
        found: Json = json.loads(self.words(*arguments, "--json"))
        assert isinstance(found, list)
        return [row for row in found if isinstance(row, dict)]

    def refused(self, *arguments: object) -> JsonObject:
        """The error document of a command that fails because of its caller."""
        status, out = self.read([*(str(a) for a in arguments), "--json"])
        assert status == 2, out
        found: JsonObject = json.loads(out)
        assert found.keys() == {"error", "detail", "hint"}
        return found


@pytest.fixture
def cli(
    app: FastAPI,
    store: Store,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[CommandLine]:
    """The command line with the owner's key, against the api."""
    with store.transaction() as session:
        key = persons.ensure_owner(session)
    assert key is not None

    def read(arguments: list[str]) -> tuple[int, str]:
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", ["preceptor", *arguments])
        try:
            status = program.run()
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, capsys.readouterr().out

    # the api, a process of its own as a rule, logs nothing here: it would be among what commands print
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    with serve(app) as url:
        monkeypatch.setenv("PRECEPTOR_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("PRECEPTOR_API_URL", url)
        monkeypatch.setenv("PRECEPTOR_API_KEY", key)
        yield CommandLine(tmp_path, url, read)
    structlog.reset_defaults()
