"""The checks of `preceptor doctor`: problems that could keep this installation from working, each with its remedy.

Changes nothing. Every check answers in words within seconds; one that cannot be made says why. With the stack down
the machine and the files are checked; with it up the services too.
"""

import asyncio
import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final, ParamSpec

import httpx2
import psutil
import redis
from packaging.requirements import Requirement
from pydantic import ValidationError
from sqlalchemy import func, select, text

from sandbox.contract import Level, SandboxHealth
from services.contracts.experts import ExpertStatus
from services.experts.protocol.client import EndpointRefused, ExpertClient, ExpertUnavailable
from services.local.care.backup import find_fault
from services.local.care.findings import Finding, Findings, Severity, fail, ok, warn
from services.local.installation import Installation, find
from services.local.layout import LOOPBACK, FolderIncomplete, Layout, free_port
from services.local.processes.lock import is_locked
from services.local.processes.process import LocalError
from services.local.supervise.run_state import Stage
from services.policy.artifacts import ArtifactStore
from services.policy.client import PolicyClient, PolicyRefused, PolicyUnavailable
from services.runtime import space
from services.store.core import migrate
from services.store.core.transaction import Store, StoreUnavailable
from services.store.ledger import fallbacks, policies
from services.store.loop import lineages, processes, switches
from services.store.loop.lineages import LineageNotFound
from services.store.tables.ledger import PolicyVersionRow
from services.store.tables.loop import ExpertRow

ROOT: Final = Path(__file__).resolve().parents[3]
GB: Final = space.GB
LITTLE_MEMORY: Final = 2 * GB
"""Memory that a policy and a trainer of the starter model need together."""
TOO_LITTLE_MEMORY: Final = GB // 2
SKEW_SECONDS: Final = 5.0
"""Clocks further apart than this make leases and signatures (valid for five minutes) unreliable."""
DATE_SKEW_SECONDS: Final = 30.0
"""The same for a Date header, which has whole seconds and may have waited."""
MIN_PYTHON: Final = (3, 11)
MIN_POSTGRES: Final = 150_000
ASK_SECONDS: Final = 5.0
SANDBOX_START_SECONDS: Final = 30.0
NUM_LOOKED_AT: Final = 4
"""Weights a folder that are read while the database is down and cannot say which are needed."""
STILL: Final = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD, psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


P = ParamSpec("P")


def examine(layout: Layout, environ: Mapping[str, str]) -> Findings:
    """Every check of an installation on this machine, as it is made. Errors: pydantic's of settings that are wrong."""
    yield from _guard("python", check_python)
    yield from _guard("libraries", check_libraries, ROOT / "constraints.txt")
    yield from _guard("memory", check_memory)
    try:
        installation = find(layout, environ)
    except LocalError as error:
        yield fail("data folder", error.detail, error.hint)
        return
    yield from _guard("data folder", check_disks, installation)
    yield from _guard("processes", check_processes, installation)
    can_be_read = True
    for finding in _guard("database", check_database, installation):
        if finding.check in ("database", "migration") and finding.verdict is Severity.FAIL:
            can_be_read = False
        yield finding
    yield from _guard("broker", check_broker, installation)
    yield from _guard("services", check_services, installation)
    yield from _guard("sandbox", check_sandbox, installation)
    if not can_be_read:
        yield warn(
            "policy and experts", "not checked: they are compared with the database", "Repair the database first."
        )
        return
    yield from _guard("heartbeats", check_beats, installation)
    yield from _guard("policy", check_policy, installation)
    yield from _guard("experts", check_experts, installation)


def examine_url(url: str, key: str) -> Findings:
    """The checks possible for an api elsewhere: that it answers, its clock, the state of its loop.

    key: empty if there is none; checks that need one are then left out.
    """
    yield from _guard("python", check_python)
    yield from _guard("libraries", check_libraries, ROOT / "constraints.txt")
    yield from _guard("api", check_api, url, key)


def _guard(check: str, make: Callable[P, "Finding | Findings"], *args: P.args, **kwargs: P.kwargs) -> Findings:
    """The finding of a check; a check that fails is a finding too and does not keep the others from running."""
    try:
        made = make(*args, **kwargs)
        yield from [made] if isinstance(made, Finding) else made
    except Exception as error:  # noqa: BLE001 - not swallowed: told
        said = str(error).strip().partition("\n")[0]
        found = f"the check broke: {type(error).__name__}" + (f": {said}" if said else "")
        yield fail(check, found, "This check failed unexpectedly: please report it.")


def check_api(url: str, key: str) -> Findings:
    """An api elsewhere: that it answers, its clock, the state of its loop, silent processes."""
    with httpx2.Client(base_url=url, timeout=ASK_SECONDS) as http:
        try:
            health = http.get("/healthz")
        except httpx2.HTTPError as error:
            yield fail("api", f"{url} does not answer: {error or type(error).__name__}", "Is the address right?")
            return
        if not health.is_success:
            yield fail("api", f"{url}/healthz answers {health.status_code}: {health.text[:200]}", "See its log.")
            return
        yield ok("api", f"{url} answers and its database is migrated")
        yield _compare_date("clock of the api", health.headers.get("Date"))
        if not key:
            yield warn("loop", "not asked: there is no key for this api", "Set PRECEPTOR_API_KEY.")
            return
        status = http.get("/v1/status", headers={"Authorization": f"Bearer {key}"})
        if not status.is_success:
            yield fail("loop", f"GET /v1/status answers {status.status_code}", "Is PRECEPTOR_API_KEY a live key?")
            return
        waits = status.json()["waits_for"]
        if waits:
            yield warn("loop", "it waits: " + "; ".join(waits), "See `preceptor status`.")
        else:
            yield ok("loop", f"{status.json()['num_updates']} updates, waiting for nothing")
        for process in status.json()["processes"]:
            silent = (datetime.now(UTC) - datetime.fromisoformat(process["beat_at"])).total_seconds()
            yield _judge_beat(process["name"], process["activity"], silent)


# --- the machine ---


def check_python() -> Finding:
    """The interpreter."""
    found = f"Python {platform.python_version()} at {sys.prefix}"
    if sys.version_info < MIN_PYTHON:
        return fail("python", found, "Install Python 3.11 or newer, then `make clean install`.")
    return ok("python", found)


def check_libraries(lock: Path) -> Findings:
    """That the required packages are installed, in the versions Preceptor is tested with."""
    try:
        required = importlib.metadata.requires("preceptor") or []
    except importlib.metadata.PackageNotFoundError:  # it runs from a folder: the image was built with its packages
        required = []
    missing = []
    for line in required:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = _find_version(requirement.name)
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            missing.append(f"{requirement.name} ({installed or 'not installed'}, wanted {requirement.specifier})")
    if missing:
        yield fail("libraries", "; ".join(missing), "Run `make install`.")
        return
    if not lock.is_file():
        yield ok("libraries", "everything required is installed (there is no lock file to compare with)")
        return
    pins = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", lock.read_text(), re.MULTILINE))
    other = [
        f"{name} {installed} instead of {pinned}"
        for name, pinned in pins.items()
        if (installed := _find_version(name)) is not None and installed.split("+")[0] != pinned
    ]
    if other:
        shown = "; ".join(other[:5]) + (f"; and {len(other) - 5} more" if len(other) > 5 else "")
        yield warn("libraries", shown, "These versions are not tested together: run `make install`.")
    else:
        yield ok("libraries", f"{len(pins)} pinned versions, all installed as pinned")


def _find_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_memory() -> Finding:
    """Memory that can be had without swapping."""
    memory = psutil.virtual_memory()
    found = f"{memory.available / GB:.1f} of {memory.total / GB:.1f} GB available"
    if memory.available < TOO_LITTLE_MEMORY:
        return fail("memory", found, "End other programs: the policy or the trainer would be killed.")
    if memory.available < LITTLE_MEMORY:
        return warn("memory", found, f"The starter model needs about {LITTLE_MEMORY / GB:.0f} GB; end other programs.")
    return ok("memory", found)


def check_disks(installation: Installation) -> Findings:
    """The data folder, and room on every disk that must not fill up."""
    home = installation.layout.root
    if not home.exists():
        yield ok("data folder", f"{home} does not exist yet; `preceptor up` makes it")
    elif not home.is_dir():
        yield fail("data folder", f"{home} is not a folder", "Name one with --home or PRECEPTOR_HOME.")
        return
    elif incomplete := _find_incomplete(installation.layout):
        yield fail("data folder", incomplete.detail, incomplete.hint)
    elif not os.access(home, os.W_OK | os.X_OK):
        yield fail("data folder", f"{home} cannot be written", "Run as its owner, or set PRECEPTOR_HOME.")
    elif home.stat().st_mode & 0o066:
        yield warn("data folder", f"{home} can be read by others", f"`chmod go-rw {home}`: it holds keys and weights.")
    else:
        size, most = space.measured.size(home) / GB, installation.settings.max_home_gb
        found = f"{home} has {size:.2f} GB"
        if most and size > most:
            yield fail("data folder", found, f"Sampling stops above PRECEPTOR_MAX_HOME_GB={most:g}: make room.")
        else:
            yield ok("data folder", found)
    least = installation.settings.min_free_gb
    for what, folder in space.places(home).items():
        free = space.free_bytes(folder) / GB
        found = f"{free:.1f} GB free"
        if free < least:
            yield fail(f"disk of {what}", found, f"Sampling stops below PRECEPTOR_MIN_FREE_GB={least:g}: make room.")
        elif free < 2 * least:
            yield warn(f"disk of {what}", found, f"Sampling stops below PRECEPTOR_MIN_FREE_GB={least:g}.")
        else:
            yield ok(f"disk of {what}", found)


def _find_incomplete(layout: Layout) -> FolderIncomplete | None:
    try:
        layout.require_complete()
    except FolderIncomplete as error:
        return error
    return None


def check_processes(installation: Installation) -> Finding:
    """Whether the stack of this data folder runs whole, is down, or left something behind."""
    layout, run = installation.layout, installation.run
    if run is None:
        if is_locked(layout.lock_file):
            return warn(
                "processes",
                "no supervisor runs, but something it started still holds the data folder",
                "If this stays for more than a minute, look for it with `fuser " + str(layout.lock_file) + "`.",
            )
        if layout.run_file.exists():
            return ok("processes", "no stack runs on this data folder; the last one was killed and left no processes")
        if not installation.is_ours:
            return ok("processes", "not checked: they are not run by `preceptor up` here")
        return ok("processes", "no stack runs on this data folder (`preceptor up` starts one)")
    away = [
        process.name
        for process in run.processes
        if process.stage is not Stage.READY or process.pid is None or not _runs(process.pid)
    ]
    if away:
        return fail("processes", f"not ready: {', '.join(away)}", f"See their logs in {layout.logs}.")
    again = [f"{process.name} ({process.num_restarts})" for process in run.processes if process.num_restarts]
    if again:
        return warn("processes", f"started again after a crash: {', '.join(again)}", f"See logs in {layout.logs}.")
    return ok("processes", f"{len(run.processes)} run, as process {run.supervisor_pid}'s children")


def _runs(pid: int) -> bool:
    """Whether a process lives and is not held still, as by a debugger or SIGSTOP."""
    try:
        return psutil.Process(pid).status() not in STILL
    except psutil.NoSuchProcess:
        return False


# --- database ---


def check_database(installation: Installation) -> Findings:
    """Reachable, new enough, migrated, its clock with ours; the weights named by the ledger are on disk and whole."""
    if installation.database_url is None:
        yield warn("database", "not checked: it runs with the stack, which is down", "Start it: `preceptor up`.")
        yield from _check_newest_weights(installation.layout)
        return
    try:
        migrate.check_url(installation.database_url)
    except migrate.DatabaseUrlWrong as error:
        yield fail("database", error.detail, error.hint)
        return
    try:
        with _open_store(installation) as store:
            yield from _look_into_database(installation, store)
    except StoreUnavailable as error:
        yield fail("database", error.detail, "Is DATABASE_URL right, and does the server run?")


def _open_store(installation: Installation) -> contextlib.closing[Store]:
    """The database, until the block ends."""
    return contextlib.closing(Store(installation.settings.database_url, pool_size=1))


def _look_into_database(installation: Installation, store: Store) -> Findings:
    with store.reading() as session:
        began = time.time()
        version, shown, now = session.execute(
            text(
                "SELECT current_setting('server_version_num')::int, current_setting('server_version'),"
                " extract(epoch FROM clock_timestamp())::float8"
            )
        ).one()
        skew = now - (began + time.time()) / 2
        revision, size = (
            migrate.find_revision(session),
            session.scalar(text("SELECT pg_database_size(current_database())")),
        )
    found = f"Postgres {shown}, {int(size or 0) / GB:.2f} GB"
    if version < MIN_POSTGRES:
        yield fail("database", found, "Preceptor needs Postgres 15 or newer.")
    else:
        yield ok("database", found)
    yield _judge_skew("clock of the database", skew, SKEW_SECONDS)
    head = migrate.find_head()
    if revision is not None and not migrate.knows(revision):
        found = f"the database is at {revision}, newer than this version of Preceptor, which knows {head}"
        yield fail("migration", found, "Install the version of Preceptor that migrated it.")
        return
    if revision != head:
        todo = "`preceptor up` migrates (elsewhere `preceptor init`); make a backup first."
        yield fail("migration", f"the database is at {revision or 'no schema'}, this version needs {head}", todo)
        return
    yield ok("migration", f"at {head}, which this version needs")
    yield from _check_weights(installation, store)


def _check_weights(installation: Installation, store: Store) -> Findings:
    """That the weights training and serving would continue from are there, bit for bit."""
    settings = installation.settings
    try:
        with store.reading() as session:
            lineage = lineages.get(session, settings.lineage)
            start = fallbacks.starting_point(session, lineage.id)
            refused = fallbacks.refusals(session, lineage.id)
            serving = policies.serving(session, lineage.id)
            blocked = switches.get(session, lineage.id).blocked_by
    except LineageNotFound:
        yield ok("weights", f"no lineage {settings.lineage!r} yet; the first `preceptor up` begins it")
        return
    if blocked is not None:
        yield fail("room to sample", blocked, "It resumes by itself once there is room.")
    yield _judge_gate(refused, serving)
    places = [
        (f"checkpoint of update {start.number}", settings.home / "checkpoints" / lineage.name, start.checkpoint_sha256)
        if start is not None
        else ("", settings.home, None),
        (f"weights of {serving.name}", settings.home / "artifacts", serving.artifact_sha256)
        if serving is not None
        else ("", settings.home, None),
    ]
    for what, folder, address in places:
        if address is None:
            continue
        fault = find_fault(ArtifactStore(folder), address)
        if fault is not None:
            yield fail(what, fault, "Restore the file from a backup; training cannot continue without it.")
        else:
            yield ok(what, f"{address[:12]}… is present and intact")


def _judge_gate(refused: fallbacks.Refusals, serving: PolicyVersionRow | None) -> Finding:
    """Whether trained versions get to serve."""
    said = fallbacks.describe(refused, serving)
    if said is None:
        return ok("gate", "the newest tested version is serving")
    if len(refused.versions) == 1 and not refused.fallbacks:
        return warn(
            "gate", said, "`preceptor policies show NAME` has the check that failed; a single refusal is harmless."
        )
    todo = (
        "`preceptor policies show NAME` has the checks that failed. Lower PRECEPTOR_TRAINER_LEARNING_RATE, or raise the"
        " bound that is too tight (PRECEPTOR_TRAINER_GATE_…), and start again."
    )
    return fail("gate", said, todo)


def _check_newest_weights(layout: Layout) -> Findings:
    """That the newest weights are whole, bit for bit: which are needed only the database can say."""
    folders = [layout.artifacts]
    if layout.checkpoints.is_dir():
        folders += sorted(folder for folder in layout.checkpoints.iterdir() if folder.is_dir())
    for folder in folders:
        stored = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
        newest = sorted(stored, key=lambda path: path.stat().st_mtime, reverse=True)[:NUM_LOOKED_AT]
        if not newest:
            continue
        faults = [fault for path in newest if (fault := find_fault(ArtifactStore(folder), path.name)) is not None]
        what = f"newest weights in {folder.relative_to(layout.root)}"
        if faults:
            yield fail(what, "; ".join(faults), "If the database names them, restore the files from a backup.")
        else:
            yield ok(what, f"the newest {len(newest)} of {len(stored)} are whole")


def check_beats(installation: Installation) -> Findings:
    """That no process which tells the database that it lives has been silent."""
    if not installation.is_up:
        return
    try:
        with _open_store(installation) as store, store.reading() as session:
            now = session.scalars(select(func.now())).one()
            rows = [(row.name, row.activity, now - row.beat_at) for row in processes.latest(session)]
    except StoreUnavailable:
        return  # said above
    for name, activity, silent in rows:
        yield _judge_beat(name, activity, silent / timedelta(seconds=1))


def check_broker(installation: Installation) -> Finding:
    """Reachable, and writing its queue to disk."""
    if installation.redis_url is None:
        return warn("broker", "not checked: it runs with the stack, which is down", "Start it: `preceptor up`.")
    try:
        with redis.Redis.from_url(
            installation.settings.redis_url, socket_timeout=ASK_SECONDS, socket_connect_timeout=ASK_SECONDS
        ) as client:
            info = client.info()
    except (redis.RedisError, OSError, ValueError) as error:  # ValueError: no address of a broker
        return fail("broker", f"it does not answer: {error}", "Is REDIS_URL right, and does the server run?")
    assert isinstance(info, dict)
    found = f"{info.get('server_name', 'redis')} {info.get('valkey_version') or info.get('redis_version')}"
    policy = info.get("maxmemory_policy")
    if policy is not None and policy != "noeviction":
        return fail("broker", f"{found} drops keys when full ({policy})", "Set `maxmemory-policy noeviction`.")
    if not info.get("aof_enabled"):
        todo = "Nothing is lost, but messages wait for the sweep after a restart: set `appendonly yes`."
        return warn("broker", f"{found} writes no append-only file", todo)
    return ok("broker", f"{found}, append-only file on, nothing is evicted")


# --- the services ---


def check_services(installation: Installation) -> Findings:
    """That each answers its health check."""
    if not installation.is_up:
        return
    settings = installation.settings
    for name, url in (("api", settings.api_url), ("experts", settings.experts_url)):
        try:
            answer = httpx2.get(f"{url}/healthz", timeout=ASK_SECONDS)
        except httpx2.HTTPError as error:
            yield fail(name, f"{url} does not answer: {error or type(error).__name__}", _start_hint(installation, name))
            continue
        if answer.is_success:
            yield ok(name, f"{url} answers")
        else:
            yield fail(name, f"{url}/healthz answers {answer.status_code}: {answer.text[:200]}", "See its log.")


def _start_hint(installation: Installation, name: str) -> str:
    if installation.run is not None:
        return f"See {installation.layout.log(name)}."
    return f"Start it, or set PRECEPTOR_{name.upper()}_URL to where it is."


def check_sandbox(installation: Installation) -> Findings:
    """How well code is isolated: of the running sandbox, or of one that is started for the question."""
    url = installation.settings.sandbox_url
    try:
        answer = httpx2.get(f"{url}/healthz", timeout=ASK_SECONDS)
        health = SandboxHealth.model_validate_json(answer.content)
    except (httpx2.HTTPError, ValidationError) as error:
        if installation.is_up:
            yield fail("sandbox", f"{url} does not answer: {error}", _start_hint(installation, "sandbox"))
            return
        yield _try_sandbox()
        return
    yield _judge_level(health)


def _try_sandbox() -> Finding:
    """Start a sandbox of one slot, ask it, and end it."""
    port = free_port()
    command = [sys.executable, "-m", "sandbox", "--port", str(port), "--slots", "1", "--die-with-parent"]
    environment = {name: value for name, value in os.environ.items() if name != "SANDBOX_API_KEY"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + SANDBOX_START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx2.HTTPError, ValidationError):
                answer = httpx2.get(f"http://{LOOPBACK}:{port}/healthz", timeout=ASK_SECONDS)
                return _judge_level(SandboxHealth.model_validate_json(answer.content))
            time.sleep(0.1)
    finally:
        process.terminate()
        _, said = process.communicate()
    last = (said.strip().splitlines() or ["it said nothing"])[-1][:300]
    return fail(
        "sandbox",
        f"it does not start here: {last}",
        "docs/sandbox.md says what it needs; `python -m sandbox --backend docker` or `--minimum-level weak` need less.",
    )


def _judge_level(health: SandboxHealth) -> Finding:
    found = f"isolation {health.level.value}, {health.slots} slots"
    if health.status != "ok":
        return warn("sandbox", f"{found}, {health.status}", "Wait a moment and ask again.")
    match health.level:
        case Level.FULL | Level.CONTAINER:
            return ok("sandbox", found)
        case Level.FULL_NOCGROUP:
            return ok("sandbox", f"{found}: memory is bounded by rlimits, for want of a cgroup that may be written")
        case Level.WEAK:
            return warn("sandbox", found, "Only for code you trust: see docs/sandbox.md for the stronger levels.")


def check_policy(installation: Installation) -> Findings:
    """That the policy serves the lineage's model, and the version the rows say."""
    if not installation.is_up:
        return
    settings = installation.settings
    try:
        with PolicyClient(settings.policy_url, settings.internal_key, read_seconds=ASK_SECONDS) as client:
            info = client.info()
    except (PolicyUnavailable, PolicyRefused) as error:
        yield fail("policy", error.detail, _start_hint(installation, "policy"))
        return
    yield ok("policy", f"{info.model} on {info.device}, serving {info.serving}")
    try:
        with _open_store(installation) as store, store.reading() as session:
            lineage = lineages.get(session, settings.lineage)
            serving = policies.serving(session, lineage.id)
    except (StoreUnavailable, LineageNotFound):
        return  # said above
    if (info.base_sha256, info.tokenizer_hash) != (lineage.base_sha256, lineage.tokenizer_hash):
        yield fail(
            "model",
            f"the policy has {info.base_sha256[:12]}…, the lineage {lineage.name!r} began with"
            f" {lineage.base_sha256[:12]}…",
            "Start it with the lineage's model (PRECEPTOR_MODEL), or set PRECEPTOR_LINEAGE to a new name.",
        )
    else:
        yield ok("model", f"{info.base_sha256[:12]}…, as the lineage {lineage.name!r} began with")
    if serving is not None and serving.name != info.serving:
        yield warn(
            "serving version",
            f"the policy serves {info.serving}, the rows say {serving.name}",
            "The trainer mends this within seconds; if it stays, see the trainer's log.",
        )


def check_experts(installation: Installation) -> Findings:
    """That every live expert answers with the version it was registered with, and its clock."""
    if installation.database_url is None:
        return
    try:
        with _open_store(installation) as store, store.reading() as session:
            live = session.scalars(
                select(ExpertRow).where(ExpertRow.status != ExpertStatus.RETIRED.value).order_by(ExpertRow.name)
            ).all()
    except StoreUnavailable:
        return  # said above
    yield from asyncio.run(_ask_experts(list(live), installation))


async def _ask_experts(live: list[ExpertRow], installation: Installation) -> Findings:
    client = ExpertClient(installation.settings.allowed_expert_networks)
    try:
        found = await asyncio.gather(*(_ask_expert(client, row) for row in live))
    finally:
        await client.close()
    return iter([finding for each in found for finding in each])


async def _ask_expert(client: ExpertClient, row: ExpertRow) -> list[Finding]:
    check = f"expert {row.name}"
    try:
        descriptor = await client.describe(row.endpoint, row.signing_secret)
        reply = await client.send("GET", row.endpoint, "/healthz", timeout=ASK_SECONDS)
    except (ExpertUnavailable, EndpointRefused) as error:
        return [fail(check, error.detail, "Its consultations wait for it. Start it, pause it or retire it.")]
    if descriptor.version != row.version:
        changed = f"answers as version {descriptor.version}, but {row.version} is registered"
        return [fail(check, changed, f"Register it again: `preceptor experts add {row.endpoint}`.")]
    findings = []
    clock = _compare_date(f"{check}'s clock", reply.headers.get("date"))
    if clock.verdict is not Severity.OK:
        findings.append(clock)
    if row.status == ExpertStatus.QUARANTINED.value:
        findings.append(
            warn(check, f"quarantined: {row.reason}", f"It answers now: `preceptor experts requeue {row.id}`.")
        )
    else:
        findings.append(ok(check, f"{row.status}, version {row.version}, answers"))
    return findings


# --- clocks ---


def _compare_date(check: str, header: str | None) -> Finding:
    if header is None:
        return ok(check, "it sends no Date header to compare with")
    try:
        theirs = parsedate_to_datetime(header)
    except ValueError:
        return warn(check, f"its Date header {header[:40]!r} is not one", "Fix the server in front of it.")
    return _judge_skew(check, (theirs - datetime.now(UTC)) / timedelta(seconds=1), DATE_SKEW_SECONDS)


def _judge_skew(check: str, seconds: float, most: float) -> Finding:
    found = f"{abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} this machine"
    if abs(seconds) <= most:
        return ok(check, found)
    return fail(check, found, "Set the clocks (NTP): leases and signatures depend on them.")


def _judge_beat(name: str, activity: str, silent: float) -> Finding:
    if name.startswith(processes.CLOCK_OF):  # said by a worker on that machine for as long as it is so
        return fail(name, activity, "Set that machine's clock (NTP).") if silent < 60 else ok(name, f"was {activity}")
    if activity == "stopped" or silent < 60:
        return ok(f"process {name}", activity)
    todo = "Worker or beat stands still: see their logs." if name == "sweep" else "See its log."
    return warn(f"process {name}", f"silent for {silent:.0f} s, last: {activity}", todo)
