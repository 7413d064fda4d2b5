"""The checks of `preceptor doctor` on the services: that each answers, isolates, and is the one that the rows say."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import Final

import httpx2
from pydantic import ValidationError
from sqlalchemy import select

from sandbox.contract import Level, SandboxHealth
from services.contracts.experts import ExpertStatus
from services.experts.protocol.client import EndpointRefused, ExpertClient, ExpertUnavailable
from services.local.care import check_stores, clocks
from services.local.care.findings import ASK_SECONDS, Finding, Findings, Severity, fail, ok, warn
from services.local.installation import Installation
from services.local.layout import LOOPBACK, ROOT, free_port
from services.policy.client import PolicyClient, PolicyRefused, PolicyUnavailable
from services.store.core.transaction import StoreUnavailable
from services.store.ledger import policies
from services.store.loop import lineages
from services.store.loop.lineages import LineageNotFound
from services.store.tables.loop import ExpertRow

SANDBOX_START_SECONDS: Final = 30.0


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
        yield clocks.compare_date("clock of the api", health.headers.get("Date"))
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
            yield clocks.judge_beat(process["name"], process["activity"], silent)


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
        with check_stores.open_store(installation) as store, store.reading() as session:
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
        with check_stores.open_store(installation) as store, store.reading() as session:
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
    clock = clocks.compare_date(f"{check}'s clock", reply.headers.get("date"))
    if clock.verdict is not Severity.OK:
        findings.append(clock)
    if row.status == ExpertStatus.QUARANTINED.value:
        findings.append(
            warn(check, f"quarantined: {row.reason}", f"It answers now: `preceptor experts requeue {row.id}`.")
        )
    else:
        findings.append(ok(check, f"{row.status}, version {row.version}, answers"))
    return findings
