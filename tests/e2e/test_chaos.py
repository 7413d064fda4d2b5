"""A small run of `make chaos`: whatever is killed, frozen, filled or flooded, every invariant holds."""

from pathlib import Path

import pytest
from sqlalchemy import text

from services.store.core.transaction import Store
from services.store.loop import lineages
from tests.chaos.invariants import find_uncovered, find_violations
from tests.chaos.run import run_chaos

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.mark.long
def test_every_invariant_holds_when_everything_is_disturbed(
    server_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = server_folder / "chaos"
    folder.mkdir(mode=0o711)
    counts = run_chaos(20, seed=1, folder=folder, disturb_every=3.0, say=print, environ=monkeypatch.setenv)
    assert counts.violations == {}
    assert all(counts.disturbances.values())
    assert counts.starved_floods == 0
    assert set(counts.rollouts) == {"ready"}
    assert set(counts.lessons) == {"used"}
    assert counts.lessons["used"] >= 40 + counts.corrections
    assert counts.applied_updates >= 2
    assert counts.refused_by_busy > 0
    assert counts.answered_by_confident > 0


def test_an_invariant_that_does_not_hold_is_found_with_its_rows(database_url: str) -> None:
    store = Store(database_url, pool_size=1)
    with store.transaction() as session:
        lineages.ensure(session, "main", "tiny", "0" * 64, "0" * 64, 32)
    assert find_violations(store) == {}
    with store.transaction() as session:
        session.execute(text("UPDATE policy_version SET number = 1, artifact_sha256 = 'x'"))
    found = find_violations(store)
    store.close()
    assert found == {"versions are not numbered from 0 without gaps": 1, "a version is of no applied update": 1}


def test_the_invariants_read_every_table_that_has_a_status() -> None:
    assert find_uncovered() == set()
