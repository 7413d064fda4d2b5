"""What `preceptor doctor` finds, with the stack down and with pieces of it up."""

import importlib.metadata
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from fastapi import FastAPI, Response
from sqlalchemy import text

from services.contracts.answers import AnswerKind
from services.contracts.experts import ConsultRequest, ConsultResult, Descriptor
from services.experts.app import create_expert_app
from services.local import doctor
from services.local.doctor import Finding, Verdict
from services.local.installation import Installation, find
from services.local.layout import Layout, free_port
from services.local.valkey import EmbeddedValkey
from services.store import loop, policies
from services.store.store import Store
from tests.cli.conftest import CommandLine, broker, cli, policy_url, settings
from tests.cli.conftest import app as api_app
from tests.serving import serve
from tests.store.conftest import World, store, world

__all__ = ["app", "broker", "cli", "policy_url", "settings", "store", "world"]
app = api_app


def only(findings: Iterator[Finding], check: str) -> Finding:
    """The one finding of this check."""
    [found] = [finding for finding in findings if finding.check == check]
    return found


@pytest.fixture
def down(tmp_path: Path) -> Installation:
    """An installation that was never started."""
    return find(Layout(tmp_path / "home"), {})


def test_a_stack_that_is_down_says_so_and_fails_nothing(down: Installation) -> None:
    findings = [*doctor.check_database(down), doctor.check_broker(down), doctor.check_processes(down)]
    assert [finding.verdict for finding in findings] == [Verdict.WARN, Verdict.WARN, Verdict.OK]
    assert all("down" in finding.found or "nothing runs" in finding.found for finding in findings)


def test_too_little_room_fails_and_names_the_setting(down: Installation) -> None:
    settings = down.settings.model_copy(update={"min_free_gb": 1e6})
    full = Installation(down.layout, settings, None, None, None, is_ours=True)
    found = only(doctor.check_disks(full), "disk of the data folder")
    assert found.verdict is Verdict.FAIL
    assert "PRECEPTOR_MIN_FREE_GB" in found.todo


def test_a_data_folder_that_others_can_read_is_pointed_out(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path / "home")
    layout.root.chmod(0o755)
    found = only(doctor.check_disks(find(layout, {})), "data folder")
    assert found.verdict is Verdict.WARN
    assert "chmod" in found.todo


def test_libraries_of_other_versions_than_the_lock_are_pointed_out(tmp_path: Path) -> None:
    lock = tmp_path / "constraints.txt"
    lock.write_text("pydantic==0.0.1\nnever-installed==1.0\n")
    [found] = doctor.check_libraries(lock)
    assert found.verdict is Verdict.WARN
    assert "pydantic" in found.found
    assert "never-installed" not in found.found


def test_libraries_are_compared_where_the_package_runs_from_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_nothing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", find_nothing)
    [found] = doctor.check_libraries(tmp_path / "no lock file")
    assert found.verdict is Verdict.OK


def test_clocks_far_apart_fail() -> None:
    late = format_datetime(datetime.now(UTC) - timedelta(minutes=10), usegmt=True)
    near = format_datetime(datetime.now(UTC), usegmt=True)
    assert doctor._compare_date("clock", late).verdict is Verdict.FAIL
    assert doctor._compare_date("clock", near).verdict is Verdict.OK


@pytest.fixture
def up(tmp_path: Path, database_url: str, world: World) -> Installation:
    """An installation with a database, and a broker that is away."""
    given = {"DATABASE_URL": database_url, "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
    return find(Layout.open(tmp_path / "home"), given)


@pytest.mark.integration
def test_a_migrated_database_with_the_machines_clock_is_ok(up: Installation) -> None:
    findings = list(doctor.check_database(up))
    assert {finding.check for finding in findings} >= {"database", "clock of the database", "migration"}
    assert {finding.verdict for finding in findings} == {Verdict.OK}


@pytest.mark.integration
def test_a_database_at_another_schema_fails(up: Installation, store: Store) -> None:
    with store.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '20200101_old'"))
    found = only(doctor.check_database(up), "migration")
    assert found.verdict is Verdict.FAIL
    assert "preceptor up" in found.todo


@pytest.mark.integration
def test_weights_that_are_gone_or_damaged_fail(up: Installation, store: Store, world: World) -> None:
    with store.transaction() as session:
        row = policies.add_candidate(session, world.lineage_id, artifact_sha256="a" * 64, update_number=1)
        policies.serve(session, row.id)
    found = only(doctor.check_database(up), "weights of main-v1")
    assert found.verdict is Verdict.FAIL
    (up.layout.artifacts / ("a" * 64)).write_text("other bytes")
    assert "sha256" in only(doctor.check_database(up), "weights of main-v1").found


@pytest.mark.integration
def test_a_blocked_sampler_fails_with_its_reason(up: Installation, store: Store, world: World) -> None:
    with store.transaction() as session:
        loop.block(session, world.lineage_id, "the disk is full")
    assert only(doctor.check_database(up), "room to sample").found == "the disk is full"


@pytest.mark.integration
def test_a_broker_that_is_away_fails_and_one_that_keeps_nothing_warns(
    up: Installation, valkey_server: EmbeddedValkey
) -> None:
    assert doctor.check_broker(up).verdict is Verdict.FAIL
    there = find(up.layout, {"DATABASE_URL": str(up.database_url), "REDIS_URL": valkey_server.url})
    found = doctor.check_broker(there)
    assert found.verdict is Verdict.WARN
    assert "appendonly" in found.todo


class Judge:
    """An expert of some version."""

    def __init__(self, version: str) -> None:
        self.descriptor = Descriptor(
            name="judge", version=version, kinds=[AnswerKind.SCORE], domains=["*"], deterministic=True, verifier=True
        )

    def consult(self, request: ConsultRequest) -> ConsultResult:
        return ConsultResult(score=1.0)


@pytest.mark.integration
@pytest.mark.parametrize(("version", "verdict"), [("1", Verdict.OK), ("2", Verdict.FAIL)])
def test_each_expert_is_asked_for_its_version(
    up: Installation, store: Store, world: World, version: str, verdict: Verdict
) -> None:
    with serve(create_expert_app(Judge(version))) as endpoint, store.transaction() as session:
        world.expert(session).endpoint = endpoint
        world.expert(session, "away")
        session.commit()
        findings = list(doctor.check_experts(up))
    assert only(iter(findings), "expert judge").verdict is verdict
    assert only(iter(findings), "expert away").verdict is Verdict.FAIL


@pytest.mark.integration
@pytest.mark.parametrize(
    ("level", "verdict"), [("full", Verdict.OK), ("full-nocgroup", Verdict.OK), ("weak", Verdict.WARN)]
)
def test_the_sandboxs_isolation_is_judged(up: Installation, level: str, verdict: Verdict) -> None:
    sandbox = FastAPI()
    health = {"status": "ok", "level": level, "python_version": "3.11", "slots": 2, "running": 0, "queue": 0}
    health |= {"queue_limit": 1, "languages": {}, "zygotes_replaced": 0, "runs_retried": 0}

    @sandbox.get("/healthz")
    def show() -> Response:
        return Response(json.dumps(health), media_type="application/json")

    with serve(sandbox) as url:
        settings = up.settings.model_copy(update={"sandbox_url": url})
        there = Installation(up.layout, settings, None, up.database_url, up.redis_url, is_ours=False)
        assert only(doctor.check_sandbox(there), "sandbox").verdict is verdict


@pytest.mark.integration
def test_an_api_elsewhere_is_asked_for_its_clock_and_what_it_waits_for(cli: CommandLine) -> None:
    findings = list(doctor.examine_url(cli.url, os.environ["PRECEPTOR_API_KEY"]))
    assert only(iter(findings), "api").verdict is Verdict.OK
    assert only(iter(findings), "clock of the api").verdict is Verdict.OK
    assert "no train tasks" in only(iter(findings), "loop").found


@pytest.mark.integration
def test_doctor_ends_with_1_when_a_check_fails_and_says_which(cli: CommandLine) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    status, out = cli.read(["doctor", "--url", gone, "--json"])
    assert status == 1
    told = json.loads(out)
    assert told["failed"] == 1
    assert [finding["check"] for finding in told["findings"] if finding["verdict"] == "fail"] == ["api"]


@pytest.mark.integration
def test_doctor_ends_with_0_when_nothing_fails(cli: CommandLine) -> None:
    status, out = cli.read(["doctor", "--url", cli.url])
    assert status == 0
    assert "0 failed" in out
