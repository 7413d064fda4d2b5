"""`preceptor up` and `preceptor demo`: a stack that lives as long as the command, and its progress lines."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import typer
from rich.console import Console

from services.cli.client import ApiClient
from services.cli.commands import demo, starter
from services.cli.options import api_of
from services.cli.output import demo_page, report
from services.cli.output.outcome import DemoOutcome
from services.cli.output.progress import Progress
from services.contracts.base import JsonObject
from services.contracts.persons import LoginLink
from services.contracts.status import LoopState, LoopSwitch, Status
from services.local.layout import Layout, make_folder
from services.local.supervise.stack import Stack, running
from services.policy.model.convert import resolve_model


@contextmanager
def _stack(
    home: Path | None, model: str | None, threads: int, progress: Progress, loop_on: bool | None = None
) -> Iterator[tuple[Stack, ApiClient]]:
    layout = Layout.open(home)
    folder = resolve_model(model or os.environ.get("PRECEPTOR_MODEL"), progress.say)
    progress.say(f"the policy is {folder.name}; the data folder is {layout.root}")
    with running(layout, folder, report=progress.say, policy_threads=threads, loop_on=loop_on) as stack:
        if stack.new_owner_key is not None:
            progress.say(f"the owner's API key, shown only once: {stack.new_owner_key}")
            progress.say(f"(this machine's command line keeps it in {layout.root / 'credentials.json'})")
        progress.say(f"api: {stack.settings.api_url}  logs: {layout.logs}")
        with ApiClient(stack.settings.api_url, stack.api_key) as api:
            api.wait_with(stack.supervisor.wait, progress.say)  # only a crash or Ctrl-C ends a run
            yield stack, api


def demonstrate(home: Path | None, model: str | None, threads: int, plan: demo.DemoPlan, as_json: bool) -> None:
    """The demo on a stack of its own, which is stopped afterwards. Errors: those of `supervise.stack.running`."""
    progress = Progress(Console(stderr=as_json))
    with _stack(home, model, threads, progress) as (stack, api):
        kept = f"everything is kept in {stack.layout.root}; `make up` continues from here"
        starter.import_into(api, progress)
        outcome = demo.run(api, plan, progress, stack.supervisor.check, kept)
        _keep_report(stack.layout, api, plan, outcome, progress, as_json)
        progress.say("stopping everything")


def demonstrate_on(layout: Layout, url: str, key: str | None, plan: demo.DemoPlan, as_json: bool) -> None:
    """The demo on a running installation. Errors: ApiKeyMissing, ApiUnreachable, ApiProblem."""
    progress = Progress(Console(stderr=as_json))
    make_folder(layout.reports, 0o700)  # before the work, so that no result is lost
    with api_of(layout.root, url, key) as api:
        status = api.get("/v1/status", Status)
        progress.say(f"{url} trains lineage {status.lineage}, model {status.model}, serving {status.serving}")
        if status.backlog:
            progress.say(f"its loop has {status.backlog} rollouts waiting for training; they count towards the demo")
        api.wait_with(time.sleep, progress.say)
        starter.import_into(api, progress)
        kept = f"the installation at {url} keeps everything; its loop is as before"
        try:
            outcome = demo.run(api, plan, progress, lambda: None, kept)
        finally:
            before = status.loop
            switch = LoopSwitch(
                sampling=before.sampling,
                training=before.training,
                max_updates=before.max_updates,
                no_end=before.max_updates is None,
            )
            api.post("/v1/loop", switch, LoopState)
        _keep_report(layout, api, plan, outcome, progress, as_json)


def _keep_report(
    layout: Layout, api: ApiClient, plan: demo.DemoPlan, outcome: DemoOutcome, progress: Progress, as_json: bool
) -> None:
    path = layout.reports / f"demo-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    document = demo.as_document(plan, outcome)
    path.write_text(json.dumps(document, indent=2) + "\n")
    shown = path.with_suffix(".html")
    shown.write_text(demo_page.write(api, outcome), encoding="utf-8")
    progress.say(f"this report: {shown} (open it in a browser), as data {path}")
    if as_json:
        typer.echo(json.dumps(document, indent=2))


def run(home: Path | None, model: str | None, threads: int, *, paused: bool, as_json: bool) -> None:
    """Start the stack with its loop on or paused, and print its progress until Ctrl-C."""
    progress = Progress(Console(stderr=as_json))

    def tell(event: str, content: JsonObject, words: str) -> None:
        progress.say(words)
        if as_json:
            typer.echo(json.dumps({"event": event, **content}))

    with _stack(home, model, threads, progress, loop_on=not paused) as (stack, api):
        try:
            words = (
                "paused: no sampling and no training; `preceptor loop on` resumes"
                if paused
                else "the loop runs; `preceptor status` shows it, Ctrl-C stops it"
            )
            tell("paused" if paused else "running", {"api_url": api.url}, words)
            pages = _pages_url(stack, api)
            tell(
                "pages",
                {"url": pages},
                f"pages: {pages}  (works once, for 15 minutes; `preceptor login` makes another)",
            )
            seen = api.get("/v1/status", Status).num_updates
            waits = report.Waits()
            while True:
                stack.supervisor.wait(5)
                current = api.get("/v1/status", Status)
                for update in sorted(current.last_updates, key=lambda u: u.number):
                    if update.number > seen:
                        seen = update.number
                        tell("update", update.model_dump(mode="json"), report.update_line(update, current))
                for line in waits.to_say(current, time.monotonic()):
                    tell("waits", {"for": line}, f"waits: {line}")
        except KeyboardInterrupt:
            tell("stopping", {}, "stopping; no work is lost")


def _pages_url(stack: Stack, api: ApiClient) -> str:
    """The link to the pages: one that logs the owner in, or the front page of an api that needs no login."""
    if stack.settings.api_open:
        return api.url
    return api.url + api.post("/v1/persons/me/login-link", None, LoginLink).path
