"""Which api is asked with which key, and what is on a data folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.cli import program
from services.cli.client import BOUND_SECONDS
from services.cli.options import ApiKeyMissing, api_of
from services.local.credentials import Credentials, credentials_file
from services.local.layout import Layout
from services.local.processes.lock import FolderLock
from services.local.supervise.run_state import Presence, find_presence
from services.local.supervise.supervisor import Supervisor
from tests.ports import free_port

HERE = "http://127.0.0.1:8123"


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that names no api."""
    for name in ("PRECEPTOR_API_URL", "PRECEPTOR_API_KEY", "PRECEPTOR_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A data folder with a kept key."""
    content = Credentials(api_url=HERE, api_key="kept").model_dump_json()
    credentials_file(Layout(tmp_path)).write_text(content)
    return tmp_path


def key_sent(home: Path, url: str | None) -> tuple[str, str]:
    client = api_of(home, url)
    client.close()
    return client.url, client.key


def test_the_kept_key_goes_to_the_kept_api(home: Path) -> None:
    assert key_sent(home, None) == (HERE, "kept")
    assert key_sent(home, HERE + "/") == (HERE + "/", "kept")


@pytest.mark.parametrize("by_environment", [True, False])
def test_the_kept_key_never_goes_to_another_api(
    home: Path, monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    elsewhere = "http://example.test"
    if by_environment:
        monkeypatch.setenv("PRECEPTOR_API_URL", elsewhere)
    given = None if by_environment else elsewhere
    with pytest.raises(ApiKeyMissing, match=r"http://example\.test"):
        api_of(home, given)
    monkeypatch.setenv("PRECEPTOR_API_KEY", "theirs")
    assert key_sent(home, given) == (elsewhere, "theirs")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["preceptor", *arguments])
    try:
        return program.run()
    except SystemExit as ended:
        return int(ended.code or 0)


def test_looking_at_a_folder_that_is_not_there_does_not_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "none"
    assert run(monkeypatch, "status", "--home", str(home)) == 0
    assert run(monkeypatch, "down", "--home", str(home), "--json") == 0
    assert not home.exists()
    printed = capsys.readouterr().out
    assert "no stack runs on this data folder" in printed
    assert '"outcome": "not running"' in printed


def test_a_held_folder_without_a_living_supervisor_is_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = Layout(tmp_path)
    assert find_presence(layout) is Presence.NOTHING
    lock = FolderLock(layout.lock_file, 0)
    try:
        assert find_presence(layout) is Presence.STOPPING
        assert run(monkeypatch, "status", "--home", str(tmp_path)) == 0
    finally:
        lock.release()
    assert "is stopping" in capsys.readouterr().out


@pytest.mark.parametrize("is_stopping", [False, True])
def test_a_command_says_when_the_api_of_its_folder_is_only_starting_or_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_stopping: bool
) -> None:
    monkeypatch.setattr("services.cli.client.PAUSE_SECONDS", BOUND_SECONDS + 1)  # so that there is no second try
    content = Credentials(api_url=f"http://127.0.0.1:{free_port()}", api_key="kept").model_dump_json()
    layout = Layout(tmp_path)
    credentials_file(layout).write_text(content)
    asked = ("eval", "--home", str(tmp_path), "--json")
    assert run(monkeypatch, *asked) == 1
    assert "Start it with `preceptor up`" in capsys.readouterr().out
    with Supervisor(layout):
        if is_stopping:
            layout.run_file.unlink()
        assert run(monkeypatch, *asked) == 1
        told = json.loads(capsys.readouterr().out)
    words = "stopping: start it again" if is_stopping else "starting: try again in a moment"
    assert (told["error"], told["hint"].startswith(f"The stack on this data folder is {words}")) == (
        "api-unreachable",
        True,
    )


def test_a_bad_setting_is_told_by_its_variables_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRECEPTOR_GROUP_SIZE", "many")
    assert run(monkeypatch, "init", "--json") == 2
    printed = capsys.readouterr()
    assert printed.out.startswith('{"error": "settings-invalid", "detail": "PRECEPTOR_GROUP_SIZE=')
    assert "Traceback" not in printed.err
    monkeypatch.delenv("PRECEPTOR_GROUP_SIZE")
    monkeypatch.setenv("PRECEPTOR_STOP", "word")
    assert run(monkeypatch, "init") == 2
    assert "PRECEPTOR_STOP must be written as JSON" in capsys.readouterr().err


def test_wrong_usage_is_one_json_document_where_json_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "tasks", "list", "--nonsense", "--json") == 2
    assert capsys.readouterr().out.startswith('{"error": "usage-wrong", "detail": "No such option: --nonsense')
    assert run(monkeypatch, "tasks", "list", "--nonsense") == 2
    assert capsys.readouterr().out == ""


def test_ctrl_c_while_it_is_imported_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "services_interrupt.py").write_text(
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'services.cli.program':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from services.cli.app import main\n"
        "main()\n"
    )
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "services_interrupt.py")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert ended.returncode == 130
    assert ended.stderr == "interrupted\n"
