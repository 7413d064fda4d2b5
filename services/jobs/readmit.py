"""Looking after quarantined experts, every few seconds: one that answers as it was registered is asked again."""

import asyncio
from collections.abc import Sequence

import structlog

from services.experts.client import EndpointRefused, ExpertUnavailable
from services.jobs.app import app, shares
from services.jobs.runtime import Runtime, runtime
from services.store import quarantine
from services.store.quarantine import Look

MOST_AT_ONCE = 4

log = structlog.get_logger(__name__)


@app.task(name="readmit")
@shares.bound("readmit")
def readmit() -> None:
    """Look after those that are due; safe to deliver twice, since each is given out once a minute."""
    held = runtime()
    with held.store.transaction() as session:
        due = quarantine.take_due(session, MOST_AT_ONCE)
    faults = held.run(_find_faults(held, due))
    for look, reason in zip(due, faults, strict=True):
        _note(held, look, reason)


def _note(held: Runtime, look: Look, reason: str | None) -> None:
    with held.store.transaction() as session:
        if reason is not None:
            quarantine.postpone(session, look.expert_id, reason)
            log.info("expert still away", expert=look.name, reason=reason)
        elif quarantine.readmit(session, look.expert_id, held.settings.quarantine_after_failures):
            log.info("expert asked again", expert=look.name)


async def _find_faults(held: Runtime, looks: Sequence[Look]) -> list[str | None]:
    return await asyncio.gather(*(_find_fault(held, look) for look in looks))


async def _find_fault(held: Runtime, look: Look) -> str | None:
    """Why it cannot be asked again; None when it answers as the version that was registered."""
    try:
        descriptor = await held.experts.describe(look.endpoint, look.signing_secret)
    except (ExpertUnavailable, EndpointRefused) as error:
        return str(error)
    if descriptor.version != look.version:
        return f"it answers as version {descriptor.version}, registered is {look.version}: register it again"
    return None
