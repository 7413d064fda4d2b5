"""Settings that come from files: the secrets of a container."""

from pathlib import Path

import pytest

from services.runtime.secret_files import find_secret
from services.runtime.settings import Settings


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PRECEPTOR_DATABASE_URL", "DATABASE_URL", "PRECEPTOR_INTERNAL_KEY", "PRECEPTOR_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PRECEPTOR_SECRETS_DIR", str(tmp_path))
    return tmp_path


def test_a_setting_may_lie_in_a_file_of_the_folder_or_of_a_folder_in_it(secrets: Path) -> None:
    (secrets / "database").mkdir()
    (secrets / "database" / "preceptor_database_url").write_text("postgresql://there/it\n")
    (secrets / "preceptor_internal_key").write_text("from a file")
    settings = Settings()
    assert (settings.database_url, settings.internal_key) == ("postgresql://there/it", "from a file")


def test_the_environment_wins_over_files(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (secrets / "preceptor_internal_key").write_text("from a file")
    monkeypatch.setenv("PRECEPTOR_INTERNAL_KEY", "given")
    assert Settings().internal_key == "given"


def test_a_key_is_found_in_the_environment_then_in_files(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_secret("PRECEPTOR_API_KEY") == ""
    (secrets / "owner").mkdir()
    (secrets / "owner" / "preceptor_api_key").write_text("pk_kept\n")
    assert find_secret("PRECEPTOR_API_KEY") == "pk_kept"
    monkeypatch.setenv("PRECEPTOR_API_KEY", "pk_given")
    assert find_secret("PRECEPTOR_API_KEY") == "pk_given"
