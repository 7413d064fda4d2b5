"""`preceptor experts measure`: whether what experts say teaches, measured now; and the measurements there are."""

import time
from collections.abc import Callable, Sequence
from typing import Annotated
from uuid import UUID

import typer
from rich.console import Console

from services.cli.client import ApiClient
from services.cli.ids import Id, read_expert, read_measurement
from services.cli.options import AsJson, Home, Limit, Url, api_of, show
from services.cli.output.lists import format_rows
from services.cli.output.progress import Progress
from services.contracts.measurements import (
    LOOKS,
    Measurement,
    MeasurementCreate,
    MeasurementsAsked,
    MeasurementStatus,
    name_source,
    say,
    say_about,
)
from services.contracts.sources import ContextSource
from services.contracts.templates import Template

POLL_SECONDS = 1.0
NUM_EXPERTS = 1000  # whose names are looked up, newest first

measurements = typer.Typer(
    no_args_is_help=True, help="Measurements of what teaches: list them, and stop one. `experts measure` asks for them."
)


@measurements.command("list")
def list_measurements(
    expert: Annotated[Id | None, typer.Option(parser=read_expert, help="Filter by expert.")] = None,
    domain: Annotated[str | None, typer.Option(help="Filter by domain.")] = None,
    status: Annotated[MeasurementStatus | None, typer.Option(help="Filter by status.")] = None,
    home: Home = None,
    url: Url = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List measurements with their verdicts, newest first."""
    with api_of(home, url) as api:
        query = {
            "expert_id": None if expert is None else str(expert.find(api)),
            "domain": domain,
            "status": status.value if status else None,
        }
        items = list(api.pages("/v1/measurements", limit, query))
        names = {str(item["id"]): item["name"] for item in api.pages("/v1/experts", NUM_EXPERTS)}

    def words() -> None:
        found = [Measurement.model_validate(item) for item in items]
        shown = [
            item | {"expert": names.get(str(one.expert_id)), "source": name_source(one), "verdict": say(one)}
            for item, one in zip(items, found, strict=True)
        ]
        columns = ("id", "expert", "source", "domain", "num_tasks", "verdict")
        typer.echo("\n".join(format_rows(shown, columns)) or "none")

    show(list(items), as_json, words)


@measurements.command("stop")
def stop_measurement(
    measurement_id: Annotated[Id, typer.Argument(parser=read_measurement)],
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Stop a measurement: it ends without a verdict, and what was decided before holds."""
    with api_of(home, url) as api:
        stopped = api.post(f"/v1/measurements/{measurement_id.find(api)}/stop", None, Measurement)
    show(stopped, as_json, lambda: typer.echo(say_about(stopped)))


def measure_expert(
    expert_id: Annotated[
        Id | None, typer.Argument(parser=read_expert, metavar="[EXPERT]", help="The expert; all by default.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="The domain; all by default.")] = None,
    source: Annotated[ContextSource | None, typer.Option(help="The source; all by default.")] = None,
    template: Annotated[Template | None, typer.Option(help="The template; all by default.")] = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, max=10_000, help="How long its draws go first; then it keeps the loop's pace.")
    ] = 60.0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until every measurement has ended.")] = True,
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Measure what teaches now: train tasks answered alone, shown the source, and shown another task's.

    For its minutes it goes on while the loop is paused. A source with too little to show stays unmeasured, with the
    reason.
    """
    progress = Progress(Console(stderr=True))
    with api_of(home, url) as api:
        wanted = MeasurementCreate(
            expert_id=None if expert_id is None else expert_id.find(api),
            domain=domain,
            source=source,
            template=template,
            minutes=minutes,
        )
        asked = api.post("/v1/measurements", wanted, MeasurementsAsked).measurements
        if wait:
            api.wait_with(time.sleep, progress.say)  # it is measured whether we look or not
            asked = wait_for(api, asked, progress, lambda: None, time.monotonic() + minutes * 60)
    show(
        MeasurementsAsked(measurements=list(asked)),
        as_json,
        lambda: typer.echo("\n".join(say_about(one) for one in asked)),
    )


def wait_for(
    api: ApiClient,
    asked: Sequence[Measurement],
    progress: Progress,
    check: Callable[[], None],
    until: float = float("inf"),
) -> list[Measurement]:
    """These measurements once each has ended or waits for more to show, or the time is up.

    check: raises when there is no use in waiting. until: in seconds of `time.monotonic`.
    """
    with progress.bar("measuring what teaches") as bar:
        while True:
            check()
            found = read(api, {one.id for one in asked})
            going_on = [one for one in found if one.status is MeasurementStatus.MEASURING and one.reason is None]
            bar.set(sum(LOOKS[-1] if one not in going_on else one.num_tasks for one in found), LOOKS[-1] * len(found))
            if not going_on or time.monotonic() >= until:
                return found
            time.sleep(POLL_SECONDS)


def read(api: ApiClient, ids: set[UUID]) -> list[Measurement]:
    """These measurements as they stand, oldest first."""
    items = (Measurement.model_validate(item) for item in api.pages("/v1/measurements", 1000))
    return sorted((one for one in items if one.id in ids), key=lambda one: one.id)
