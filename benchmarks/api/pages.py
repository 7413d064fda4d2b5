"""How long lists and pages take at a million rollouts: every GET route of the app, with the filters it has.

Routes come from the app itself, so a new page is measured without a word here; only what its address must name is
looked up in `EXAMPLES`. A list is also asked for its middle, behind a cursor.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import httpx2
from fastapi import FastAPI
from fastapi.routing import APIRoute
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from benchmarks.api.fill import fill
from benchmarks.api.stage import Stage
from services.runtime.settings import Settings
from services.store.core.pages import encode_cursor
from services.web.app import create_app

TARGET_MS: Final = 200.0
TIMEOUT_SECONDS: Final = 60.0
WARM_REQUESTS: Final = 2

EXAMPLES: Final = {
    "task_id": "SELECT task_id FROM rollout OFFSET 1000 LIMIT 1",
    "rollout_id": "SELECT rollout_id FROM lesson WHERE status = 'used' OFFSET 1000 LIMIT 1",
    "group_id": "SELECT group_id FROM rollout OFFSET 1000 LIMIT 1",
    "expert_id": "SELECT id FROM expert LIMIT 1",
    "consultation_id": "SELECT id FROM consultation OFFSET 1000 LIMIT 1",
    "correction_id": "SELECT id FROM correction WHERE status = 'submitted' LIMIT 1",
    "evaluation_id": "SELECT id FROM evaluation LIMIT 1",
    "person_id": "SELECT id FROM person LIMIT 1",
    "number": "SELECT max(number) - 3 FROM update",
    "name": "SELECT name FROM policy_version WHERE number = 3",
}
"""What a parameter of a path may be, as a query that finds one."""

FILTERS: Final = {
    "/v1/tasks": ("split=heldout", "domain=math", "family=family-3", "domain=math&family=family-3"),
    "/v1/rollouts": (
        *("task_id={task_id}", "group_id={group_id}", "status=open", "status=ready", "status=set_aside"),
        *("purpose=train", "purpose=evaluation", "purpose=chat", "purpose=evaluation&status=set_aside"),
        *("purpose=chat&status=ready", "purpose=train&status=open", "task_id={task_id}&status=open"),
    ),
    "/v1/consultations": (
        *("expert_id={expert_id}", "status=dead", "status=waiting", "status=pending", "status=asked"),
        *("expert_id={expert_id}&status=dead", "expert_id={expert_id}&status=invalid"),
    ),
    "/v1/corrections": ("status=open", "status=skipped", "mine=true", "mine=true&status=open"),
    "/v1/updates": ("status=applied", "status=undone"),
    "/v1/policies": ("status=serving", "status=rejected"),
}
"""Queries besides the plain one; also of values that no row, or hardly one, has: those scan the most."""

CURSORS: Final = {
    "/v1/tasks": "task",
    "/v1/rollouts": "rollout",
    "/v1/consultations": "consultation",
    "/v1/corrections": "correction",
    "/v1/updates": "update",
    "/v1/policies": "policy_version",
}


@dataclass(frozen=True)
class PageTime:
    """How long one address takes, and what it costs."""

    address: str
    status: int
    num_bytes: int
    p50_ms: float
    p95_ms: float
    cpu_ms: float
    """Processor time of the api and Postgres, for one request: what the time would be on an idle machine, about."""


def measure_pages(console: Console, stage: Stage, num_rollouts: int, num_requests: int) -> list[PageTime]:
    """Fill the database and ask for every page."""
    if not _is_filled(stage, num_rollouts):
        stage.put_experts(7)
        seconds = fill(stage, num_rollouts)
        console.print(f"{num_rollouts:,} rollouts filled in {seconds:.0f} s, {_size(stage)}")
    headers = {"Authorization": f"Bearer {stage.key}"}
    pages = []
    with httpx2.Client(base_url=stage.url, headers=headers, timeout=TIMEOUT_SECONDS) as http:
        for address in list_addresses(stage):
            pages.append(_time(stage, http, address, num_requests))
            console.print(f"  {pages[-1].p95_ms:8.1f} ms  {pages[-1].cpu_ms:8.1f} ms CPU  {address}", highlight=False)
    return pages


def _is_filled(stage: Stage, num_rollouts: int) -> bool:
    with stage.store.transaction() as session:
        return bool(session.scalar(text("SELECT count(*) FROM rollout")) == num_rollouts)


def list_addresses(stage: Stage) -> list[str]:
    """Every GET route of the app with examples for its path, then its filters and its middle."""
    examples = dict(_find_examples(stage))
    found = []
    for path in sorted(find_paths(create_app(Settings()))):
        try:
            address = path.replace(":path}", "}").format(**examples)
        except KeyError:  # nothing of the sort is in the database
            continue
        found.append(address)
        found += [f"{address}?{query.format(**examples)}" for query in FILTERS.get(path, ())]
        if path in CURSORS:
            found.append(f"{address}?cursor={_find_middle(stage, CURSORS[path])}")
    return found


def find_paths(app: FastAPI) -> Iterator[str]:
    """The paths of the app's own GET routes, pages among them."""
    for route in app.routes:
        router = getattr(route, "original_router", None)
        for inner in [route] if router is None else router.routes:
            if isinstance(inner, APIRoute) and "GET" in (inner.methods or ()) and "/static" not in inner.path:
                yield inner.path


def _find_examples(stage: Stage) -> Iterator[tuple[str, str]]:
    with stage.store.transaction() as session:
        for name, query in EXAMPLES.items():
            if (value := session.scalar(text(query))) is not None:
                yield name, str(value)


def _find_middle(stage: Stage, table: str) -> str:
    with stage.store.transaction() as session:
        middle = text(f'SELECT id FROM "{table}" ORDER BY id OFFSET (SELECT count(*) / 2 FROM "{table}") LIMIT 1')  # noqa: S608
        return encode_cursor(session.scalars(middle).one())


def _time(stage: Stage, http: httpx2.Client, address: str, num_requests: int) -> PageTime:
    waits: list[float] = []
    before = stage.read_cpu()
    status = num_bytes = 0
    for number in range(WARM_REQUESTS + num_requests):
        if number == WARM_REQUESTS:
            before = stage.read_cpu()
            waits.clear()
        began = time.monotonic()
        try:
            response = http.get(address)
        except httpx2.TimeoutException:  # as slow as that: once is enough
            waits = [TIMEOUT_SECONDS] * 2
            num_requests = 1
            break
        status, num_bytes = response.status_code, len(response.content)
        waits.append(time.monotonic() - began)
    used = stage.read_cpu() - before
    cuts = statistics.quantiles(waits, n=20)
    return PageTime(
        address=address,
        status=status,
        num_bytes=num_bytes,
        p50_ms=cuts[9] * 1e3,
        p95_ms=cuts[18] * 1e3,
        cpu_ms=(used.api + used.postgres) / num_requests * 1e3,
    )


def _size(stage: Stage) -> str:
    with stage.store.transaction() as session:
        return str(session.scalar(text("SELECT pg_size_pretty(pg_database_size(current_database()))")))


def show_pages(console: Console, pages: list[PageTime]) -> None:
    """The times, the slowest first."""
    table = Table(title=f"Lists and pages; the target is a p95 of {TARGET_MS:.0f} ms", min_width=110)
    for heading in ("address", "status", "bytes", "p50 ms", "p95 ms", "CPU ms"):
        table.add_column(heading, justify="left" if heading == "address" else "right", overflow="fold")
    for page in sorted(pages, key=lambda one: -one.p95_ms):
        slow = "[red]" if page.p95_ms > TARGET_MS else ""
        table.add_row(
            page.address,
            str(page.status),
            f"{page.num_bytes:,}",
            f"{page.p50_ms:.1f}",
            f"{slow}{page.p95_ms:.1f}",
            f"{page.cpu_ms:.1f}",
        )
    console.print(table)
