"""A small run of `make chaos`: kill -9 of workers, trainer, Valkey (wiped) and Postgres loses and repeats nothing."""

from pathlib import Path

import pytest

from tests.chaos import run_chaos

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_nothing_is_lost_or_counted_twice_when_everything_is_killed(
    server_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = server_folder / "chaos"
    folder.mkdir(mode=0o711)
    counts = run_chaos(20, seed=1, folder=folder, kill_every=4.0, say=print, environ=monkeypatch.setenv)
    assert counts.faults() == {}
    assert sum(counts.kills.values()) >= 3
    assert counts.lessons == {"used": 40}
    assert counts.rollouts == {"ready": 40}
    assert counts.applied_updates >= 2
