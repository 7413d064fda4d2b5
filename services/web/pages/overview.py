"""The overview of the loop: its state, speed, queues and curves."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

from fastapi import Query
from pydantic import Field
from sqlalchemy.orm import Session
from starlette.responses import Response

from services.acts import loop
from services.api.deps import SettingsDep, StoreDep
from services.contracts.base import Contract
from services.contracts.persons import Right
from services.contracts.status import MAX_UPDATES, LoopSwitch, Status
from services.runtime import space
from services.runtime.errors import InvalidInput
from services.runtime.settings import Settings
from services.store.ledger import policies, updates
from services.store.loop import lineages
from services.store.stats.estimates import Interval
from services.store.views import curves, under_way, versions
from services.store.views import status as stats
from services.store.views.versions import Comparison
from services.web.forms import build_pages, form_of
from services.web.presenters import charts
from services.web.presenters.charts import Chart, VersionChart
from services.web.visitors import CallDep, VisitorDep, go_to, needs, page

SILENCE = timedelta(seconds=60)  # a live process sends a heartbeat every few seconds
NUM_VERSIONS = 24  # on the chart; the list has them all

router = build_pages()


class SwitchForm(Contract):
    """One of the loop's switches, as a button sets it."""

    switch: Annotated[str, Field(pattern="^(sampling|training)$")]
    turn: Annotated[str, Field(pattern="^(on|off)$")]


class EndForm(Contract):
    """The update after which the loop stops; None for no limit."""

    max_updates: Annotated[str, Field(pattern="^[0-9]{1,9}$")] | None = None


@router.get("/", dependencies=[needs(Right.READ)])
def show_overview(visitor: VisitorDep, store: StoreDep, settings: SettingsDep) -> Response:
    """The whole page. Errors: LineageNotFound (404)."""
    with store.reading() as session:
        now, drawn = _read_now(session, settings), _read_curves(session, settings)
        headline = _read_headline(session, settings, None)
    return page(visitor, "overview/page.html", **vars(now), **vars(drawn), headline=headline)


@router.get("/overview/now", dependencies=[needs(Right.READ)])
def show_now(visitor: VisitorDep, store: StoreDep, settings: SettingsDep) -> Response:
    """The piece that changes every second or two. Errors: LineageNotFound (404)."""
    with store.reading() as session:
        now = _read_now(session, settings)
    return page(visitor, "overview/_now.html", **vars(now))


@router.get("/overview/curves", dependencies=[needs(Right.READ)])
def show_curves(
    visitor: VisitorDep, store: StoreDep, settings: SettingsDep, after: Annotated[int, Query(ge=0, lt=2**31)] = 0
) -> Response:
    """The piece with the charts; 204 when no update was applied after the one the page shows.

    Errors: LineageNotFound (404).
    """
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        if updates.last_number(session, lineage.id) <= after:
            return Response(status_code=204)
        drawn = _read_curves(session, settings)
    return page(visitor, "overview/_curves.html", **vars(drawn))


@router.get("/overview/headline", dependencies=[needs(Right.READ)])
def show_headline(visitor: VisitorDep, store: StoreDep, settings: SettingsDep, after: UUID | None = None) -> Response:
    """The piece with the headline; 204 when it is still of the evaluation that the page shows.

    Errors: LineageNotFound (404).
    """
    with store.reading() as session:
        headline = _read_headline(session, settings, after)
    if headline is None:
        return Response(status_code=204)
    return page(visitor, "overview/_headline.html", headline=headline)


@router.post("/loop", dependencies=[needs(Right.OPERATE)])
def switch_loop(visitor: VisitorDep, call: CallDep, form: Annotated[SwitchForm, form_of(SwitchForm)]) -> Response:
    """Turn sampling or training on or off."""
    is_on = form.turn == "on"
    loop.switch(call, LoopSwitch(sampling=is_on) if form.switch == "sampling" else LoopSwitch(training=is_on))
    return go_to(visitor, "/", notice=f"{form.switch.capitalize()} is {form.turn}.")


@router.post("/loop/end", dependencies=[needs(Right.OPERATE)])
def end_loop(visitor: VisitorDep, call: CallDep, form: Annotated[EndForm, form_of(EndForm)]) -> Response:
    """Set the update after which the loop stops, or remove the limit."""
    last = None if form.max_updates is None else int(form.max_updates)
    if last is not None and last > MAX_UPDATES:
        raise InvalidInput(f"a loop makes at most {MAX_UPDATES:,} updates")
    loop.switch(call, LoopSwitch(max_updates=last, no_end=last is None))
    return go_to(
        visitor,
        "/",
        notice="The loop continues without a limit." if last is None else f"The loop stops after update {last}.",
    )


@dataclass(frozen=True)
class Now:
    """The part that changes every second or two. silent: processes without a recent heartbeat."""

    status: Status
    silent: frozenset[str]
    rates: under_way.Rates
    queues: under_way.Queues
    max_backlog: int


@dataclass(frozen=True)
class Drawn:
    """The charts; they change with updates. last: the newest update on them, 0 before the first."""

    charts: list[Chart]
    versions: VersionChart | None
    last: int


def _read_now(session: Session, settings: Settings) -> Now:
    lineage = lineages.get(session, settings.lineage)
    status = stats.status(
        session,
        lineage,
        max_backlog=settings.max_backlog_lessons,
        max_groups_per_task=settings.max_groups_per_task,
        group_size=settings.group_size,
        shortage=space.find_shortage(settings),
    )
    spoke_since = datetime.now(UTC) - SILENCE
    return Now(
        status=status,
        silent=frozenset(
            one.name for one in status.processes if one.beat_at < spoke_since and one.activity != "stopped"
        ),
        rates=under_way.rates(session, lineage.id),
        queues=under_way.queues(session, lineage.id),
        max_backlog=settings.max_backlog_lessons,
    )


def _read_curves(session: Session, settings: Settings) -> Drawn:
    lineage = lineages.get(session, settings.lineage)
    found = curves.read(session, lineage.id)
    return Drawn(
        charts=charts.draw(found),
        versions=charts.draw_versions(read_version_rates(session, lineage.id)),
        last=max(found.numbers, default=0),
    )


def _read_headline(session: Session, settings: Settings, shown: UUID | None) -> Comparison | None:
    """The newest measured version beside the base; None where there is none, or its evaluation is shown already."""
    lineage = lineages.get(session, settings.lineage)
    found = versions.newest_beside_base(session, lineage.id)
    if found is None or found[1].id == shown:
        return None
    return versions.compare_two(session, *found)


def read_version_rates(session: Session, lineage_id: UUID) -> list[tuple[str, Interval]]:
    """The pass rate on train tasks of the newest versions that were judged, oldest first."""
    newest = policies.newest(session, lineage_id, before=None, limit=NUM_VERSIONS)
    practice = versions.practice(session, lineage_id, {row.name for row in newest})
    rates = [(row.name, found.interval) for row in newest if (found := practice.get(row.name)) is not None]
    return [(name, interval) for name, interval in reversed(rates) if interval is not None]
