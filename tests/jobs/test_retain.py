"""The hourly job: what the settings keep, what it deletes, files among it."""

from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from services.jobs import retain
from services.policy.artifacts import ArtifactStore
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.ledger import policies
from services.store.tables.loop import GroupRow
from tests.store.conftest import World

pytestmark = pytest.mark.integration


def settings(home: Path, url: str, **keep: float) -> Settings:
    return Settings.model_validate({"home": home, "database_url": url, **keep})


@pytest.fixture
def old_group(store: Store, world: World) -> None:
    """A group from the first days of time, of a purpose nobody is asked about."""
    with store.transaction() as session:
        rows = world.drawn(session, world.task(session), size=1)
        old = "00000000-0000-7000-8000-000000000001"
        session.execute(text("SET CONSTRAINTS ALL DEFERRED"))
        group = session.get_one(GroupRow, rows[0].group_id)
        session.execute(
            text(
                "INSERT INTO rollout_group SELECT :old, lineage_id, task_id, split, purpose, evaluation_id,"
                " policy_version, size, sampling, external, 'dead', 'none', attempts, failures, lease_until,"
                " not_before, sent_at, created_at FROM rollout_group WHERE id = :id"
            ),
            {"old": old, "id": group.id},
        )


@pytest.mark.usefixtures("old_group")
def test_old_rows_go_and_young_ones_stay(store: Store, database_url: str, tmp_path: Path) -> None:
    assert retain.apply(store, settings(tmp_path, database_url))["groups"] == 1
    with store.transaction() as session:
        assert session.scalar(select(func.count()).select_from(GroupRow)) == 1


@pytest.mark.usefixtures("old_group")
def test_zero_days_means_for_ever(store: Store, database_url: str, tmp_path: Path) -> None:
    keep = {"keep_unused_rollouts_days": 0, "keep_attempts_days": 0, "keep_adapters_days": 0}
    assert sum(retain.apply(store, settings(tmp_path, database_url, **keep)).values()) == 0


def test_old_weights_leave_the_disk_and_the_rows_stay(
    store: Store, world: World, database_url: str, tmp_path: Path
) -> None:
    artifacts = ArtifactStore(tmp_path / "artifacts")
    addresses = []
    for number in range(3):
        scratch = tmp_path / f"weights-{number}"
        scratch.mkdir()
        (scratch / "w").write_text(str(number))
        addresses.append(artifacts.store(scratch))
    stranger = tmp_path / "artifacts" / ("9" * 64)
    stranger.mkdir()
    with store.transaction() as session:
        for address in addresses:
            row = policies.add_candidate(session, world.lineage_id, artifact_sha256=address, update_number=1)
            policies.serve(session, row.id)
        session.execute(text("UPDATE policy_version SET created_at = now() - interval '1 year'"))
    given = settings(tmp_path, database_url, max_staleness=0)
    assert retain.apply(store, given)["weights"] == 2
    assert [artifacts.contains(address) for address in addresses] == [False, False, True]
    assert stranger.exists()  # no row names it: it may be a version that is being published
    assert retain.apply(store, given)["weights"] == 0
    with store.transaction() as session:
        assert policies.by_name(session, world.lineage_id, "main-v1").weights_deleted_at is not None
