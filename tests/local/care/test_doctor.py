"""What `preceptor doctor` finds, with the stack down and with pieces of it up."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from fastapi import FastAPI, Response
from sqlalchemy import text

from services.contracts.answers import AnswerKind
from services.contracts.experts import ConsultRequest, ConsultResult, Descriptor
from services.contracts.policies import GateCheck, GateReport
from services.experts.protocol.app import create_expert_app
from services.local.care import check_machine, check_services, check_stores, clocks, doctor
from services.local.care.findings import Finding, Severity, ok
from services.local.installation import Installation, find
from services.local.layout import Layout
from services.local.servers.postgres import EmbeddedPostgres
from services.local.servers.valkey import EmbeddedValkey
from services.local.supervise.run_state import RunningProcess, RunState, Stage
from services.policy.artifacts import ArtifactStore
from services.store.core.transaction import Store
from services.store.ledger import policies
from services.store.loop import processes, switches
from tests.cli.conftest import CommandLine, broker, cli, policy_url, settings
from tests.cli.conftest import app as api_app
from tests.ports import free_port
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
    findings = [
        *check_stores.check_database(down),
        check_stores.check_broker(down),
        check_machine.check_processes(down),
    ]
    assert [finding.verdict for finding in findings] == [Severity.WARN, Severity.WARN, Severity.OK]
    assert all("down" in finding.found or "no stack runs" in finding.found for finding in findings)


def test_too_little_room_fails_and_names_the_setting(down: Installation) -> None:
    settings = down.settings.model_copy(update={"min_free_gb": 1e6})
    full = Installation(down.layout, settings, None, None, None, is_ours=True)
    found = only(check_machine.check_disks(full), "disk of the data folder")
    assert found.verdict is Severity.FAIL
    assert "PRECEPTOR_MIN_FREE_GB" in found.todo


def test_a_data_folder_that_others_can_read_is_pointed_out(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path / "home")
    layout.root.chmod(0o755)
    found = only(check_machine.check_disks(find(layout, {})), "data folder")
    assert found.verdict is Severity.WARN
    assert "chmod" in found.todo


def test_a_data_folder_that_is_a_file_or_a_part_of_a_backup_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    [file] = check_machine.check_disks(find(Layout(tmp_path / "file"), {}))
    assert (file.verdict, "is not a folder" in file.found) == (Severity.FAIL, True)
    layout = Layout.open(tmp_path / "home")
    layout.incomplete_file.write_text("")
    found = only(check_machine.check_disks(find(layout, {})), "data folder")
    assert (found.verdict, "was interrupted" in found.found) == (Severity.FAIL, True)


def test_a_data_folder_past_its_largest_size_fails_and_names_the_setting(tmp_path: Path) -> None:
    there = find(Layout.open(tmp_path / "home"), {})
    (there.layout.logs / "api.log").write_text("x" * 10_000)
    settings = there.settings.model_copy(update={"max_home_gb": 1e-6})
    found = only(
        check_machine.check_disks(Installation(there.layout, settings, None, None, None, is_ours=True)), "data folder"
    )
    assert (found.verdict, "PRECEPTOR_MAX_HOME_GB" in found.todo) == (Severity.FAIL, True)


def test_with_the_stack_down_the_newest_weights_are_read(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path / "home")
    (tmp_path / "weights").write_text("whole")
    ArtifactStore(layout.artifacts).store(tmp_path / "weights")
    address = ArtifactStore(layout.checkpoints / "main").store(tmp_path / "weights")
    (layout.checkpoints / "main" / address).write_text("other bytes")
    findings = list(check_stores.check_database(find(layout, {})))
    assert only(iter(findings), "newest weights in artifacts").verdict is Severity.OK
    found = only(iter(findings), "newest weights in checkpoints/main")
    assert (found.verdict, address in found.found) == (Severity.FAIL, True)


def test_a_check_that_breaks_is_a_finding_of_its_own() -> None:
    def look() -> Iterator[Finding]:
        yield ok("first", "well")
        raise RuntimeError("no such thing\nat all")

    first, broken = doctor._guard("second", look)
    assert first.verdict is Severity.OK
    assert (broken.check, broken.verdict) == ("second", Severity.FAIL)
    assert broken.found == "the check broke: RuntimeError: no such thing"


def test_a_data_folder_of_another_user_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout.open(tmp_path / "home")

    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("services.local.processes.lock.os.open", refuse)
    found = list(doctor.examine(layout, {}))[-1]
    assert (found.check, found.verdict) == ("data folder", Severity.FAIL)
    assert "another user" in found.found


@pytest.mark.parametrize("url", ["nonsense", "mysql://me:hidden@127.0.0.1/x", "postgresql://me:hidden@h:port/x"])
def test_an_address_that_is_none_of_a_database_or_broker_fails_and_is_not_shown(tmp_path: Path, url: str) -> None:
    findings = list(doctor.examine(Layout.open(tmp_path / "home"), {"DATABASE_URL": url, "REDIS_URL": url}))
    assert not any("broke" in finding.found or "hidden" in finding.found for finding in findings)
    assert only(iter(findings), "database").verdict is Severity.FAIL
    assert only(iter(findings), "broker").verdict is Severity.FAIL
    assert only(iter(findings), "policy and experts").verdict is Severity.WARN


def test_a_process_that_is_held_still_is_not_ready(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        layout = Layout.open(tmp_path / "home")
        running = RunningProcess(
            name="beat", stage=Stage.READY, pid=process.pid, url=None, log=layout.log("beat"), num_restarts=0
        )
        run = RunState(supervisor_pid=1, supervisor_created=0.0, started_at=datetime.now(UTC), processes=[running])
        there = find(layout, {})
        up = Installation(layout, there.settings, run, None, None, is_ours=True)
        try:
            assert check_machine.check_processes(up).verdict is Severity.OK
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            found = check_machine.check_processes(up)
        finally:
            process.kill()
    assert (found.verdict, found.found) == (Severity.FAIL, "not ready: beat")


def test_libraries_of_other_versions_than_the_lock_are_pointed_out(tmp_path: Path) -> None:
    lock = tmp_path / "constraints.txt"
    lock.write_text("pydantic==0.0.1\nnever-installed==1.0\n")
    [found] = check_machine.check_libraries(lock)
    assert found.verdict is Severity.WARN
    assert "pydantic" in found.found
    assert "never-installed" not in found.found


def test_libraries_are_compared_where_the_package_runs_from_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_nothing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", find_nothing)
    [found] = check_machine.check_libraries(tmp_path / "no lock file")
    assert found.verdict is Severity.OK


def test_clocks_far_apart_fail() -> None:
    late = format_datetime(datetime.now(UTC) - timedelta(minutes=10), usegmt=True)
    near = format_datetime(datetime.now(UTC), usegmt=True)
    assert clocks.compare_date("clock", late).verdict is Severity.FAIL
    assert clocks.compare_date("clock", near).verdict is Severity.OK


@pytest.fixture
def up(tmp_path: Path, database_url: str, world: World) -> Installation:
    """An installation with a database, and a broker that is away."""
    given = {"DATABASE_URL": database_url, "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
    return find(Layout.open(tmp_path / "home"), given)


@pytest.mark.integration
def test_a_migrated_database_with_the_machines_clock_is_ok(up: Installation) -> None:
    findings = list(check_stores.check_database(up))
    assert {finding.check for finding in findings} >= {"database", "clock of the database", "migration"}
    assert {finding.verdict for finding in findings} == {Severity.OK}


@pytest.mark.integration
def test_a_database_at_a_newer_schema_fails(up: Installation, store: Store) -> None:
    with store.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '29990101_later'"))
    found = only(check_stores.check_database(up), "migration")
    assert found.verdict is Severity.FAIL
    assert "Install the version" in found.todo


@pytest.mark.integration
def test_a_database_at_an_older_schema_fails(up: Installation, next_schema: str) -> None:
    found = only(check_stores.check_database(up), "migration")
    assert found.verdict is Severity.FAIL
    assert "preceptor up" in found.todo
    assert next_schema in found.found


@pytest.mark.integration
def test_what_needs_rows_is_not_looked_at_in_a_database_without_a_schema(
    tmp_path: Path, postgres_server: EmbeddedPostgres
) -> None:
    empty = {"DATABASE_URL": postgres_server.url_of("postgres"), "REDIS_URL": "redis://127.0.0.1:1/0"}
    findings = list(doctor.examine(Layout.open(tmp_path / "home"), empty))
    assert "no schema" in only(iter(findings), "migration").found
    assert only(iter(findings), "policy and experts").verdict is Severity.WARN
    assert not any("broke" in finding.found for finding in findings)


@pytest.mark.integration
def test_a_process_that_is_silent_is_said(up: Installation, store: Store) -> None:
    with store.transaction() as session:
        processes.beat(session, "trainer", 1, "training", {})
        processes.beat(session, "sweep", 2, "sweeping", {})
        processes.beat(session, "other", 3, "resting", {})
        session.execute(text("UPDATE process SET beat_at = now() - interval '65 seconds' WHERE name <> 'other'"))
    findings = list(check_stores.check_beats(up))
    assert only(iter(findings), "process trainer").verdict is Severity.WARN
    assert "beat" in only(iter(findings), "process sweep").todo
    assert only(iter(findings), "process other").verdict is Severity.OK


@pytest.mark.integration
def test_weights_that_are_gone_or_damaged_fail(up: Installation, store: Store, world: World) -> None:
    with store.transaction() as session:
        row = policies.add_candidate(session, world.lineage_id, artifact_sha256="a" * 64, update_number=1)
        policies.serve(session, row.id)
    found = only(check_stores.check_database(up), "weights of main-v1")
    assert found.verdict is Severity.FAIL
    (up.layout.artifacts / ("a" * 64)).write_text("other bytes")
    assert "sha256" in only(check_stores.check_database(up), "weights of main-v1").found


@pytest.mark.integration
def test_versions_that_are_refused_in_a_row_fail_with_what_to_do(up: Installation, store: Store, world: World) -> None:
    report = GateReport(checks=[GateCheck(name="kl_base", passed=False, value=9, bound=3)])
    verdicts = []
    for _ in range(3):
        verdicts.append(only(check_stores._check_weights(up, store), "gate").verdict)
        with store.transaction() as session:
            row = policies.add_candidate(session, world.lineage_id, artifact_sha256="a" * 64, update_number=0)
            policies.reject(session, row.id, report, "the gate refused it: kl_base")
    assert verdicts == [Severity.OK, Severity.WARN, Severity.FAIL]
    found = only(check_stores._check_weights(up, store), "gate")
    assert "refused the newest 3 versions, and base still serves" in found.found
    assert "PRECEPTOR_TRAINER_GATE" in found.todo


@pytest.mark.integration
def test_a_blocked_sampler_fails_with_its_reason(up: Installation, store: Store, world: World) -> None:
    with store.transaction() as session:
        switches.block(session, world.lineage_id, "the disk is full")
    assert only(check_stores.check_database(up), "room to sample").found == "the disk is full"


@pytest.mark.integration
def test_a_broker_that_is_away_fails_and_one_that_keeps_nothing_warns(
    up: Installation, valkey_server: EmbeddedValkey
) -> None:
    assert check_stores.check_broker(up).verdict is Severity.FAIL
    there = find(up.layout, {"DATABASE_URL": str(up.database_url), "REDIS_URL": valkey_server.url})
    found = check_stores.check_broker(there)
    assert found.verdict is Severity.WARN
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
@pytest.mark.parametrize(("version", "verdict"), [("1", Severity.OK), ("2", Severity.FAIL)])
def test_each_expert_is_asked_for_its_version(
    up: Installation, store: Store, world: World, version: str, verdict: Severity
) -> None:
    with serve(create_expert_app(Judge(version))) as endpoint, store.transaction() as session:
        world.expert(session).endpoint = endpoint
        world.expert(session, "away")
        session.commit()
        findings = list(check_services.check_experts(up))
    assert only(iter(findings), "expert judge").verdict is verdict
    assert only(iter(findings), "expert away").verdict is Severity.FAIL


@pytest.mark.integration
@pytest.mark.parametrize(
    ("level", "verdict"), [("full", Severity.OK), ("full-nocgroup", Severity.OK), ("weak", Severity.WARN)]
)
def test_the_sandboxs_isolation_is_judged(up: Installation, level: str, verdict: Severity) -> None:
    sandbox = FastAPI()
    health = {
        "status": "ok",
        "level": level,
        "protects": [],
        "leaves_open": [],
        "python_version": "3.11",
        "slots": 2,
        "running": 0,
        "queue": 0,
    }
    health |= {"queue_limit": 1, "languages": {}, "zygotes_replaced": 0, "runs_retried": 0}

    @sandbox.get("/healthz")
    def show() -> Response:
        return Response(json.dumps(health), media_type="application/json")

    with serve(sandbox) as url:
        settings = up.settings.model_copy(update={"sandbox_url": url})
        there = Installation(up.layout, settings, None, up.database_url, up.redis_url, is_ours=False)
        assert only(check_services.check_sandbox(there), "sandbox").verdict is verdict


@pytest.mark.integration
def test_an_api_elsewhere_is_asked_for_its_clock_and_what_it_waits_for(cli: CommandLine) -> None:
    findings = list(doctor.examine_url(cli.url, os.environ["PRECEPTOR_API_KEY"]))
    assert only(iter(findings), "api").verdict is Severity.OK
    assert only(iter(findings), "clock of the api").verdict is Severity.OK
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


@pytest.mark.integration
def test_without_a_key_an_api_elsewhere_is_asked_for_what_needs_none(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PRECEPTOR_API_KEY")
    status, out = cli.read(["doctor", "--url", cli.url, "--json"])
    assert status == 0
    verdicts = {finding["check"]: finding["verdict"] for finding in json.loads(out)["findings"]}
    assert (verdicts["api"], verdicts["loop"]) == ("ok", "warn")


@pytest.mark.integration
def test_the_environments_api_is_examined_unless_a_folder_or_a_database_is_named(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def checks(*arguments: str) -> set[str]:
        _, out = cli.read(["doctor", *arguments, "--json"])
        return {finding["check"] for finding in json.loads(out)["findings"]}

    def keep_still() -> Finding:
        return ok("sandbox", "not started by this test")

    monkeypatch.setattr(check_services, "_try_sandbox", keep_still)
    assert "memory" not in checks()
    assert "memory" in checks("--home", str(tmp_path))
    # as in the operator's container: the address of the api, and a database among the secrets
    monkeypatch.setenv("PRECEPTOR_SECRETS_DIR", str(tmp_path))
    (tmp_path / "preceptor_database_url").write_text("postgresql://nobody@127.0.0.1:1/none")
    assert "memory" in checks()
