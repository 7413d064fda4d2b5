"""Commands for an installation that somebody else runs: its key, its loop, the demo on it."""

from pathlib import Path

import pytest

from services.cli import program
from tests.cli.conftest import CommandLine


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> "Said":
    for name in ("PRECEPTOR_API_URL", "PRECEPTOR_API_KEY", "PRECEPTOR_SECRETS_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PRECEPTOR_HOME", str(tmp_path))
    return Said(monkeypatch, capsys)


class Said:
    """What a command says on stderr, and its status."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def by(self, *arguments: str) -> tuple[int, str]:
        self._monkeypatch.setattr("sys.argv", ["preceptor", *arguments])
        try:
            status = program.run()
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, self._capsys.readouterr().err


def test_the_demo_asks_for_a_key_before_it_does_anything(said: Said) -> None:
    status, words = said.by("demo", "--against", "http://127.0.0.1:9")
    assert status == 2
    assert "http://127.0.0.1:9 was named, and no key for it" in words


def test_the_demo_brings_no_model_to_an_installation(said: Said) -> None:
    status, words = said.by("demo", "--against", "http://127.0.0.1:9", "--key", "pk_x", "--model", "m")
    assert status == 2
    assert "the installation has a model already" in words


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
