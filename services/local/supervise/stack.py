"""The product's processes on one machine, in the order they need each other.

    postgres, valkey -> schema, owner -> policy, sandbox -> lineage -> experts, api -> own experts
    -> worker, beat, trainer

`DATABASE_URL` and `REDIS_URL` in the environment win over the embedded servers.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from services import prepare
from services.local.credentials import Credentials, credentials_file, read_credentials
from services.local.layout import LOOPBACK, ROOT, Layout, free_port, given_database_url, given_redis_url, write_private
from services.local.servers.postgres import EmbeddedPostgres
from services.local.servers.valkey import EmbeddedValkey
from services.local.supervise.run_state import RunState
from services.local.supervise.supervisor import Component, ProcessSpec, Supervisor, answers_http
from services.runtime.errors import PreceptorError
from services.runtime.settings import Settings

SERVICES = ("api", "policy", "sandbox", "experts")
POLICY_READY_SECONDS = 180.0  # loading a model of some gigabytes from a slow disk


@dataclass(frozen=True)
class Stack:
    """A running stack."""

    settings: Settings
    layout: Layout
    api_key: str
    supervisor: Supervisor
    new_owner_key: str | None


class OwnerKeyMissing(PreceptorError):
    """The database has an owner whose key is not known here, as after a restore without secrets."""

    status_code = 401
    title = "No key of the owner"
    hint = "Set PRECEPTOR_API_KEY to an owner's key."


@contextmanager
def running(
    layout: Layout, model: Path, *, report: Callable[[str], None], policy_threads: int, loop_on: bool | None = None
) -> Iterator[Stack]:
    """The whole stack, healthy, until the block ends.

    model: a folder in Hugging Face's format. loop_on: how the loop begins; None leaves it as it was. The processes
    inherit this process's environment.
    Errors: FolderInUse, ProcessFailed with the last lines of the log, LineageModelDiffers, RegistrationFailed,
    OwnerKeyMissing, DatabaseNewer.
    """
    with Supervisor(layout, report) as supervisor:
        os.environ.update(environment(layout, *_start_servers(layout, supervisor)))
        settings = Settings()
        report("migrating the database")
        new_owner_key = prepare.prepare_database(settings)
        api_key = _keep_key(layout, settings, new_owner_key)
        supervisor.start(*engines(settings, layout, model, policy_threads))
        prepare.prepare_lineage(settings)
        if loop_on is not None:
            prepare.switch_loop(settings, on=loop_on)
        supervisor.start(*faces(settings))
        report("registering the experts")
        prepare.register_own_experts(settings, api_key)
        supervisor.start(*workers(), trainer(model, policy_threads))
        write_scrape_targets(layout, supervisor.state())
        yield Stack(settings, layout, api_key, supervisor, new_owner_key)


def environment(layout: Layout, database_url: str, redis_url: str) -> dict[str, str]:
    """The environment of every process of the stack, including a free port for each service."""
    secrets = layout.secrets()
    internal_key = secrets.internal_key.get_secret_value()
    ports: set[int] = set()
    while len(ports) < len(SERVICES):
        ports.add(free_port())
    urls = {
        f"PRECEPTOR_{name.upper()}_URL": f"http://{LOOPBACK}:{port}" for name, port in zip(SERVICES, ports, strict=True)
    }
    return {
        **urls,
        "PRECEPTOR_HOME": str(layout.root),
        "PRECEPTOR_DATABASE_URL": database_url,
        "PRECEPTOR_REDIS_URL": redis_url,
        "PRECEPTOR_INTERNAL_KEY": internal_key,
        "PRECEPTOR_SANDBOX_KEY": internal_key,
        "PRECEPTOR_EXPERT_SECRET": secrets.expert_signing_secret.get_secret_value(),
        "SANDBOX_API_KEY": internal_key,
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads of two torch processes would starve each other
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # the model is on disk by now
    }


def engines(settings: Settings, layout: Layout, model: Path, policy_threads: int) -> list[ProcessSpec]:
    """The processes that run models and code: policy and sandbox."""
    policy = ["--model", str(model), "--artifacts", str(layout.artifacts), "--threads", str(policy_threads)]
    return [
        _service("policy", ["-m", "services.policy.server.app", *policy], settings.policy_url, POLICY_READY_SECONDS),
        _service("sandbox", ["-m", "sandbox"], settings.sandbox_url),
    ]


def faces(settings: Settings) -> list[ProcessSpec]:
    """The processes that answer from the store and the engines: experts and api."""
    return [
        _service("experts", ["-m", "services.experts"], settings.experts_url),
        _service("api", ["-m", "services.web"], settings.api_url),
    ]


def workers() -> list[ProcessSpec]:
    """The Celery worker, and beat, which asks for a sweep every second."""
    celery = [sys.executable, "-m", "celery", "-A", "services.jobs.app"]
    pool = ["--pool", "threads", "--without-gossip", "--without-mingle"]
    listen = f"{LOOPBACK}:{free_port()}"
    return [
        ProcessSpec(
            "worker",
            [*celery, "worker", *pool, "-l", "INFO"],
            env={"PRECEPTOR_METRICS_LISTEN": listen},
            cwd=ROOT,
            max_restarts=3,
            stop_seconds=25,
            url=f"http://{listen}",
        ),
        ProcessSpec("beat", [*celery, "beat", "-l", "WARNING"], cwd=ROOT, max_restarts=3),
    ]


def trainer(model: Path, threads: int) -> ProcessSpec:
    """The trainer, on as many threads as the policy's engine unless PRECEPTOR_TRAINER_THREADS says otherwise."""
    listen = f"{LOOPBACK}:{free_port()}"
    return ProcessSpec(
        "trainer",
        [sys.executable, "-m", "trainer", "--model", str(model)],
        env={
            "PRECEPTOR_TRAINER_THREADS": os.environ.get("PRECEPTOR_TRAINER_THREADS", str(threads)),
            "PRECEPTOR_METRICS_LISTEN": listen,
        },
        cwd=ROOT,
        stop_seconds=60,
        url=f"http://{listen}",
    )


def write_scrape_targets(layout: Layout, state: RunState) -> None:
    """Tell Prometheus where this start's processes serve /metrics: `prometheus.json`, for `file_sd_configs`."""
    targets = [
        {"targets": [urlsplit(process.url).netloc], "labels": {"service": process.name}}
        for process in state.processes
        if process.url is not None
    ]
    write_private(layout.root / "prometheus.json", json.dumps(targets, indent=2) + "\n")


def _start_servers(layout: Layout, supervisor: Supervisor) -> tuple[str, str]:
    """The database's and the broker's URL, embedded ones started where the environment names none."""
    database_url, redis_url = given_database_url(os.environ), given_redis_url(os.environ)
    postgres = EmbeddedPostgres(layout.postgres, log=layout.log("postgres"))
    valkey = EmbeddedValkey(layout.valkey, log=layout.log("valkey"))
    wanted: list[Component] = [
        *([postgres] if database_url is None else []),
        *([valkey] if redis_url is None else []),
    ]
    if wanted:
        supervisor.start(*wanted)
    return database_url or postgres.url, redis_url or valkey.url_of(0)


def _service(name: str, arguments: list[str], url: str, ready_seconds: float = 60.0) -> ProcessSpec:
    port = url.rsplit(":", 1)[1]
    return ProcessSpec(
        name,
        [sys.executable, *arguments, "--host", LOOPBACK, "--port", port],
        cwd=ROOT,
        is_ready=answers_http(f"{url}/healthz"),
        ready_seconds=ready_seconds,
        url=url,
    )


def _keep_key(layout: Layout, settings: Settings, new_key: str | None) -> str:
    """The command line's key: the new owner's, or the one kept from the first start, or PRECEPTOR_API_KEY."""
    kept = read_credentials(layout)
    key = new_key or os.environ.get("PRECEPTOR_API_KEY") or (kept.api_key if kept else None)
    if key is None:
        raise OwnerKeyMissing("the database has an owner already, but this data folder has no API key")
    content = Credentials(api_url=settings.api_url, api_key=key).model_dump()
    write_private(credentials_file(layout), json.dumps(content, indent=2) + "\n")
    return key
