"""Checking experts every few seconds: one in quarantine that answers as registered is consulted again, and an active
one that has changed goes back to probation."""

import asyncio
from collections.abc import Sequence

import structlog

from services.contracts.experts import Descriptor
from services.experts.protocol.client import EndpointRefused, ExpertUnavailable
from services.jobs.app import app, shares
from services.jobs.runtime import Runtime, runtime
from services.store.loop import experts, quarantine
from services.store.loop.quarantine import Look

MOST_AT_ONCE = 8

log = structlog.get_logger(__name__)

Found = Descriptor | ExpertUnavailable | EndpointRefused


@app.task(name="readmit")
@shares.bound("readmit")
def readmit() -> None:
    """Check the experts that are due; safe to deliver twice, since each is due once a minute."""
    held = runtime()
    with held.store.transaction() as session:
        away = quarantine.take_due(session, MOST_AT_ONCE)
        asked = experts.take_unseen(session, MOST_AT_ONCE)
    found = held.run(_describe_all(held, [*away, *asked]))
    for look, descriptor in zip(away, found[: len(away)], strict=True):
        _look_after(held, look, descriptor)
    for look, descriptor in zip(asked, found[len(away) :], strict=True):
        if not isinstance(descriptor, ExpertUnavailable) and descriptor != look.descriptor:
            _note_changed(held, look, descriptor)


async def _describe_all(held: Runtime, looks: Sequence[Look]) -> list[Found]:
    return await asyncio.gather(*(_describe(held, look) for look in looks))


async def _describe(held: Runtime, look: Look) -> Found:
    try:
        return await held.experts.describe(look.endpoint, look.signing_secret)
    except (ExpertUnavailable, EndpointRefused) as error:
        return error


def _look_after(held: Runtime, look: Look, found: Found) -> None:
    reason = _find_fault(look, found)
    with held.store.transaction() as session:
        if reason is not None:
            quarantine.postpone(session, look.expert_id, reason)
            log.info("expert still unavailable", expert=look.name, reason=reason)
        elif quarantine.readmit(session, look.expert_id, held.settings.quarantine_after_failures):
            log.info("expert consulted again", expert=look.name)


def _find_fault(look: Look, found: Found) -> str | None:
    """Why it cannot be consulted again; None if it answers as registered."""
    if not isinstance(found, Descriptor):
        return str(found)
    if found.version != look.descriptor.version:
        return f"it answers as version {found.version}, but {look.descriptor.version} is registered: register it again"
    if found != look.descriptor:
        return "its descriptor differs from the registered one: register it again"
    return None


def _note_changed(held: Runtime, look: Look, found: Descriptor | EndpointRefused) -> None:
    said = found.detail if isinstance(found, EndpointRefused) else found
    with held.store.transaction() as session:
        if experts.note_changed(session, look.expert_id, said):
            log.warning("expert changed", expert=look.name, registered=look.descriptor.version, found=str(said)[:500])
