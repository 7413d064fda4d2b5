"""Templates: one environment that escapes everything, rejects undefined names, and formats values.

Filters: `ago` and `when` (times), `short` (ids), `number`, `percent`, `words` (a status word without underscores),
`reveal` (foreign text, with invisible characters marked), `measured` and `source_name` (a measurement in words).
"""

from datetime import UTC, datetime
from functools import cache
from uuid import UUID

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from services.contracts.measurements import name_source, say_about
from services.web.assets import asset_url
from services.web.presenters.hidden import reveal


@cache
def environment() -> Environment:
    """The process's own environment."""
    made = Environment(
        loader=PackageLoader("services.web", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["asset"] = asset_url
    made.filters.update(
        ago=ago,
        when=when,
        short=short,
        number=number,
        percent=percent,
        words=words,
        browser=browser,
        reveal=reveal,
        measured=say_about,
        source_name=name_source,
    )
    return made


def render(template: str, /, **context: object) -> str:
    """The template filled in."""
    return environment().get_template(template).render(context)


def ago(at: datetime | None) -> Markup:
    """A time relative to now, with the full time in the tooltip."""
    if at is None:
        return Markup('<span class="quiet">never</span>')
    seconds = (datetime.now(UTC) - at).total_seconds()
    said = _span(abs(seconds))
    said = "just now" if abs(seconds) < 5 else f"{said} ago" if seconds > 0 else f"in {said}"
    return _time(at, said)


def when(at: datetime | None) -> Markup:
    """A time to the second, in UTC."""
    return (
        Markup('<span class="quiet">never</span>')
        if at is None
        else _time(at, f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}")
    )


def short(value: UUID | str | None) -> str:
    """The end of an id, its random part: ids made close together still look different."""
    return "–" if value is None else str(value)[-8:]


def number(value: float | None, digits: int = 3) -> str:
    """A number with thin thousands, or to so many significant digits; a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 10**digits:
        return f"{value:,.0f}".replace(",", "\u202f")
    return f"{value:.{digits}g}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share as percent."""
    return "–" if value is None else f"{100 * value:.{digits}f}\u202f%"


def words(value: object) -> str:
    """A status word as people read it."""
    return str(value).replace("_", " ")


def browser(agent: str | None) -> str:
    """The browser and system in a User-Agent, by their usual names."""
    said = agent or ""
    names = (("Edg/", "Edge"), ("OPR/", "Opera"), ("Firefox/", "Firefox"), ("Chrome/", "Chrome"), ("Safari/", "Safari"))
    systems = ("Android", "iPhone", "iPad", "Windows", "Mac OS X", "CrOS", "Linux")
    name = next((name for mark, name in names if mark in said), said.partition("/")[0][:30] or "unknown")
    system = next((system for system in systems if system in said), None)
    return name if system is None else f"{name} on {system.replace('Mac OS X', 'macOS').replace('CrOS', 'ChromeOS')}"


def _time(at: datetime, said: str) -> Markup:
    moment = at.astimezone(UTC)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        moment.isoformat(timespec="seconds"), f"{moment:%Y-%m-%d %H:%M:%S} UTC", said
    )


def _span(seconds: float) -> str:
    for size, name in ((86400 * 365, "y"), (86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f}\u202f{name}"
    return f"{seconds:.0f}\u202fs"
