"""What the api costs: rollouts taken in by the second and core, and lists and pages at a million rollouts.

    python -m benchmarks.api                       # both, some 15 minutes
    python -m benchmarks.api --only ingest
    python -m benchmarks.api --only pages --rollouts 100000

Runs on an embedded Postgres that commits durably (fsync and synchronous_commit on) and the api process as it is
served. Costs are processor seconds of the api process and of all of Postgres, not wall time, so that the machine may
be busy with something else; the client's own are not among them. `alone` is the single route without group commit
(benchmarks/api/server.py).
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from benchmarks.api.load import Cost, Load, measure
from benchmarks.api.pages import measure_pages, show_pages
from benchmarks.api.stage import Stage, set_up

LOADS = (
    Load("alone, 1 at once", "/alone/rollouts", 1),
    Load("alone, 32 at once", "/alone/rollouts", 32),
    Load("alone, 128 at once", "/alone/rollouts", 128),
    Load("single, 1 at once", "/v1/rollouts", 1),
    Load("single, 32 at once", "/v1/rollouts", 32),
    Load("single, 128 at once", "/v1/rollouts", 128),
    Load("batch of 100, 1 at once", "/v1/rollouts/batch", 1, 100),
    Load("batch of 100, 4 at once", "/v1/rollouts/batch", 4, 100),
)
NUM_EXPERTS = (0, 1, 7)


def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.api", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["ingest", "pages"], help="one half of it")
    parser.add_argument("--sent", type=int, default=4_000, help="rollouts a line of the first half")
    parser.add_argument("--experts", type=int, nargs="*", default=list(NUM_EXPERTS), help="numbers of matching experts")
    parser.add_argument("--rollouts", type=int, default=1_000_000, help="rollouts to fill the database with")
    parser.add_argument("--requests", type=int, default=20, help="requests a page")
    parser.add_argument("--folder", type=Path, help="keep the filled database here, and use it again the next time")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args(arguments)
    if options.requests < 2:
        parser.error("--requests: two or more, for there to be percentiles")
    console = Console()
    figures: dict[str, object] = {"machine": platform.platform(), "cores": os.cpu_count()}
    with set_up(options.folder) as stage:
        console.print(_describe_database(stage))
        if options.only != "pages":
            costs = [cost for count in options.experts for cost in _measure_ingest(console, stage, count, options.sent)]
            figures["ingest"] = [asdict(cost) for cost in costs]
        if options.only != "ingest":
            pages = measure_pages(console, stage, options.rollouts, options.requests)
            show_pages(console, pages)
            figures["pages"] = [asdict(page) for page in pages]
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1, default=str) + "\n")
    return 0


def _describe_database(stage: Stage) -> str:
    with stage.store.transaction() as session:
        names = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
        found = {name: session.scalars(text(f"SHOW {name}")).one() for name in names}
    return "Postgres: " + ", ".join(f"{name} {value}" for name, value in found.items())


def _measure_ingest(console: Console, stage: Stage, num_experts: int, num_rollouts: int) -> list[Cost]:
    costs: list[Cost] = []
    for load in LOADS:
        stage.put_experts(num_experts)
        slow = load.path.startswith("/alone") or (load.at_once == 1 and not load.batch)
        costs.append(measure(stage, load, num_experts, num_rollouts // 8 if slow else num_rollouts))
        console.print(f"  {load.name}: {costs[-1].api_us:.0f} + {costs[-1].postgres_us:.0f} µs", highlight=False)
    table = Table(title=f"Rollouts of 256 tokens, {num_experts} matching experts: processor time of one", min_width=100)
    for heading in (
        "",
        "api µs",
        "Postgres µs",
        "policy µs",
        "per s and core",
        "with Postgres",
        "× alone",
        "p50 ms",
        "p95 ms",
    ):
        table.add_column(heading, justify="left" if not heading else "right")
    plain = {cost.load.at_once: cost for cost in costs if cost.load.path.startswith("/alone")}
    for cost in costs:
        other = plain.get(cost.load.at_once, plain[max(plain)])
        table.add_row(
            cost.load.name,
            f"{cost.api_us:.0f}",
            f"{cost.postgres_us:.0f}",
            f"{cost.policy_us:.0f}",
            f"{cost.rollouts_per_api_core:,.0f}",
            f"{cost.rollouts_per_core:,.0f}",
            f"{cost.rollouts_per_core / other.rollouts_per_core:.1f}",
            f"{cost.p50_ms:.1f}",
            f"{cost.p95_ms:.1f}",
        )
    console.print(table)
    return costs


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
