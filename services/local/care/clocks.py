"""Clocks and heartbeats, as the checks of `preceptor doctor` judge them."""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

from services.local.care.findings import Finding, fail, ok, warn
from services.store.loop import processes

SKEW_SECONDS: Final = 5.0
"""Clocks further apart than this make leases and signatures (valid for five minutes) unreliable."""
DATE_SKEW_SECONDS: Final = 30.0
"""The same for a Date header, which has whole seconds and may have waited."""


def compare_date(check: str, header: str | None) -> Finding:
    """Whether a server's clock, as its Date header tells it, goes with this machine's."""
    if header is None:
        return ok(check, "it sends no Date header to compare with")
    try:
        theirs = parsedate_to_datetime(header)
    except ValueError:
        return warn(check, f"its Date header {header[:40]!r} is not one", "Fix the server in front of it.")
    return judge_skew(check, (theirs - datetime.now(UTC)) / timedelta(seconds=1), DATE_SKEW_SECONDS)


def judge_skew(check: str, seconds: float, most: float) -> Finding:
    """Whether a clock that is so many seconds ahead of this machine's is near enough."""
    found = f"{abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} this machine"
    if abs(seconds) <= most:
        return ok(check, found)
    return fail(check, found, "Set the clocks (NTP): leases and signatures depend on them.")


def judge_beat(name: str, activity: str, silent: float) -> Finding:
    """Whether a process that was last heard so many seconds ago lives."""
    if name.startswith(processes.CLOCK_OF):  # said by a worker on that machine for as long as it is so
        return fail(name, activity, "Set that machine's clock (NTP).") if silent < 60 else ok(name, f"was {activity}")
    if activity == "stopped" or silent < 60:
        return ok(f"process {name}", activity)
    todo = "Worker or beat stands still: see their logs." if name == "sweep" else "See its log."
    return warn(f"process {name}", f"silent for {silent:.0f} s, last: {activity}", todo)
