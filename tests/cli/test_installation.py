"""Commands for an installation that somebody else runs: its key, its loop, the demo on it."""

import json
from pathlib import Path

import pytest

from services.cli import program
from services.cli.commands import stack
from services.local.layout import Layout
from services.local.supervise.stack import OwnerKeyMissing, _keep_key
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.ledger import policies
from tests.cli.conftest import CommandLine
from tests.store.conftest import World


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> "Said":
    for name in ("PRECEPTOR_API_URL", "PRECEPTOR_API_KEY", "PRECEPTOR_SECRETS_DIR", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PRECEPTOR_HOME", str(tmp_path))
    return Said(monkeypatch, capsys)


class Said:
    """What a command says on stderr, and its status."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.out = ""

    def by(self, *arguments: str) -> tuple[int, str]:
        self._monkeypatch.setattr("sys.argv", ["preceptor", *arguments])
        try:
            status = program.run()
        except SystemExit as ended:
            status = int(ended.code or 0)
        self.out, words = self._capsys.readouterr()
        return status, words


def test_the_demo_asks_for_a_key_before_it_does_anything(said: Said) -> None:
    status, words = said.by("demo", "--against", "http://127.0.0.1:9")
    assert status == 2
    assert "no API key is known for http://127.0.0.1:9" in words


def test_the_demo_brings_no_model_to_an_installation(said: Said) -> None:
    status, words = said.by("demo", "--against", "http://127.0.0.1:9", "--key", "pk_x", "--model", "m")
    assert status == 2
    assert "the installation already has a model" in words


DEAD = "postgresql://nobody:hidden@127.0.0.1:1/none"


@pytest.mark.parametrize(
    ("arguments", "url", "words"),
    [
        (["backup", "{}/new"], DEAD, "The database failed"),
        (["backup", "{}/new"], "nonsense", "DATABASE_URL cannot be read as an address"),
        (["init", "--database"], DEAD, "The database failed"),
        (["init", "--database"], "mysql://me:hidden@h/x", "DATABASE_URL is an address of mysql"),
        (["restore", "{}/none"], DEAD, "none does not exist"),
    ],
)
def test_a_database_that_cannot_be_used_is_told_in_words_and_as_json(
    said: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], url: str, words: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    called = [argument.format(tmp_path) for argument in arguments]
    status, told = said.by(*called)
    assert status in (1, 2)
    assert words in told
    assert "Traceback" not in told
    assert "hidden" not in told
    assert said.by(*called, "--json")[0] == status
    assert json.loads(said.out).keys() == {"error", "detail", "hint"}


def test_what_the_machine_refuses_is_told_in_words_and_as_json(
    said: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(layout: Layout) -> None:
        raise OSError(30, "Read-only file system", "/there")

    monkeypatch.setattr(stack, "stop_running", refuse)
    assert said.by("down") == (1, "A file or folder is not accessible: /there: Read-only file system\n")
    said.by("down", "--json")
    assert json.loads(said.out)["error"] == "machine-refused"


def test_up_refuses_what_a_restore_left_that_did_not_come_to_its_end(said: Said, tmp_path: Path) -> None:
    (tmp_path / "INCOMPLETE").write_text("")
    status, words = said.by("up", "--home", str(tmp_path))
    assert status == 1
    assert words.startswith("Data folder incomplete: a restore into")


def test_a_missing_key_of_the_owner_is_called_so(said: Said, tmp_path: Path) -> None:
    with pytest.raises(OwnerKeyMissing) as missing:
        _keep_key(Layout(tmp_path), Settings(), None)
    assert missing.value.title == "No key of the owner"
    assert "PRECEPTOR_API_KEY" in missing.value.hint


@pytest.mark.integration
def test_a_backup_without_weights_that_are_needed_is_kept_and_ends_with_1(
    cli: CommandLine, database_url: str, store: Store, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with store.transaction() as session:
        version = policies.add_candidate(session, world.lineage_id, artifact_sha256="a" * 64, update_number=1)
        policies.serve(session, version.id)
    monkeypatch.setenv("DATABASE_URL", database_url)
    status, out = cli.read(["backup", str(tmp_path / "backup"), "--json"])
    assert status == 1
    assert json.loads(out)["damaged"].keys() == {"a" * 64}
    assert (tmp_path / "backup" / "manifest.json").exists()


@pytest.mark.integration
def test_the_key_is_that_of_the_secrets_folder_where_none_is_given(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cli.words("key").startswith("pk_")
    monkeypatch.delenv("PRECEPTOR_API_KEY")
    monkeypatch.setenv("PRECEPTOR_SECRETS_DIR", str(tmp_path))
    (tmp_path / "preceptor_api_key").write_text("pk_kept")
    assert cli.words("key") == "pk_kept\n"


@pytest.mark.integration
def test_the_loop_is_turned_on_for_good_or_until_an_update_and_off(cli: CommandLine) -> None:
    assert cli.json("loop", "on", "--until", 3) == {"sampling": True, "training": True, "max_updates": 3}
    assert cli.json("loop", "on") == {"sampling": True, "training": True, "max_updates": None}
    assert cli.json("loop", "off") == {"sampling": False, "training": False, "max_updates": None}
