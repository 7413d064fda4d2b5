"""The secrets of an installation in containers: made once, given by the environment, kept."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "containers" / "make_secrets.py"
FOLDERS = ("database", "broker", "policy", "sandbox", "experts", "metrics")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in FOLDERS:
        (tmp_path / name).mkdir()
    return tmp_path


def make(root: Path, **given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-I", str(PROGRAM), str(root)], capture_output=True, text=True, env=given)


def read(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_first_start_makes_every_secret_and_the_next_one_none(root: Path) -> None:
    assert make(root).returncode == 0
    made = read(root)
    assert made.keys() == {
        "broker/password",
        "broker/preceptor_redis_url",
        "database/password",
        "database/preceptor_database_url",
        "experts/preceptor_expert_secret",
        "metrics/preceptor_metrics_key",
        "policy/preceptor_internal_key",
        "sandbox/preceptor_sandbox_key",
    }
    assert made["database/preceptor_database_url"] == (
        f"postgresql://preceptor:{made['database/password']}@postgres:5432/preceptor"
    )
    own = [value for name, value in made.items() if not name.endswith("_url")]
    assert len(set(own)) == len(own)
    again = make(root)
    assert (again.returncode, again.stdout, read(root)) == (0, "", made)


def test_what_is_made_is_printed_by_its_place_and_never_by_its_value(root: Path) -> None:
    said = make(root).stdout
    assert said.count(" is new\n") == 8
    assert not [value for value in read(root).values() if value in said]


def test_a_secret_that_is_given_replaces_the_one_that_is_kept_and_stays(root: Path) -> None:
    make(root)
    given = {"PRECEPTOR_POSTGRES_PASSWORD": "a-password-of-my-own"}
    assert make(root, **given).returncode == 0
    assert "a-password-of-my-own" in read(root)["database/preceptor_database_url"]
    make(root)
    assert read(root)["database/password"] == "a-password-of-my-own"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PRECEPTOR_POSTGRES_PASSWORD", "it's; DROP ROLE preceptor"),
        ("PRECEPTOR_REDIS_PASSWORD", "short"),
        ("PRECEPTOR_EXPERT_SECRET", "without-its-prefix-and-base64"),
    ],
)
def test_a_secret_that_cannot_be_used_is_refused_before_any_is_written(root: Path, variable: str, value: str) -> None:
    refused = make(root, **{variable: value})
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"{variable} must be ")
    assert value not in refused.stderr
    assert read(root) == {}
