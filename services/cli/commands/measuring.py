"""`preceptor experts measure`: whether what experts say teaches, measured now."""

import time
from collections.abc import Callable, Sequence
from typing import Annotated
from uuid import UUID

import typer
from rich.console import Console

from services.cli.client import ApiClient
from services.cli.ids import Id, read_expert
from services.cli.options import AsJson, Home, Url, api_of, show
from services.cli.output.progress import Progress
from services.contracts.measurements import (
    LOOKS,
    Measurement,
    MeasurementCreate,
    MeasurementsAsked,
    MeasurementStatus,
    say_about,
)
from services.contracts.sources import ContextSource
from services.contracts.templates import Template

POLL_SECONDS = 1.0


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
