"""Experts: services registered by URL, their conformance, and whether they are asked and trained on."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Annotated, Final
from uuid import UUID

from fastapi import Body
from pydantic import Field
from sqlalchemy.orm import Session

from services.api.auth import CallerDep, needs
from services.api.deps import PagingDep, SettingsDep, StoreDep
from services.api.once import Once, OnceDep
from services.api.routes.common import build_router, problems
from services.contracts.base import Contract, Json, Page
from services.contracts.experts import (
    ConformanceReport,
    Expert,
    ExpertCreate,
    ExpertRegistered,
    ExpertStatus,
    OwnKind,
)
from services.contracts.persons import Right
from services.experts.protocol import conformance
from services.experts.protocol.client import ExpertClient
from services.jobs import dispatch
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.loop import experts, lineages
from services.store.views import browse

router = build_router("experts")


class Why(Contract):
    """Why an expert is paused or retired; shown with it."""

    reason: Annotated[str, Field(min_length=1, max_length=2_000)] = "by hand"


NO_REASON = Why()
WhyBody = Annotated[Why, Body()]


@router.post("/experts", status_code=201, dependencies=[needs(Right.OPERATE)], responses=problems(409, 413, 415, 422))
def register_expert(body: ExpertCreate, store: StoreDep, settings: SettingsDep, once: OnceDep) -> ExpertRegistered:
    """Register an expert by its URL: its descriptor is read, the conformance suite runs, its report is stored.

    It starts on probation (consulted, but its answers train nothing), or `active` when it is `trusted` and every
    check held. An expert is known by its endpoint: the same one again gets a new report and all settings anew, those
    left out as if it were new; `changed` names what is different. Where its descriptor has changed, a new version takes
    the old one's place, which retires. What a service calls itself gives it nothing: the name of another live expert is
    refused. `warnings` names metadata that it declares and was not granted.

    Errors: NotAnExpert for an address that is not allowed, does not answer, redirects or answers HTML or anything else
    but a descriptor, SecretUnusable (422); ExpertNameTaken, EndpointTaken (409).
    """
    return _check_and(experts.register, body, store, settings, once)


@router.post(
    "/experts/{expert_id}/move",
    dependencies=[needs(Right.OPERATE)],
    responses=problems(404, 409, 413, 415, 422),
)
def move_expert(
    expert_id: UUID, body: ExpertCreate, store: StoreDep, settings: SettingsDep, once: OnceDep
) -> ExpertRegistered:
    """Register an expert at another address, with new settings. It goes through probation there, unless `trusted`.

    Errors: ExpertNotFound (404), NotAnExpert, SecretUnusable (422), ExpertRetired, ExpertNameTaken, EndpointTaken
    (409).
    """
    with store.transaction() as session:
        experts.get(session, expert_id)
    return _check_and(
        lambda session, lineage_id, *said: experts.move(session, lineage_id, expert_id, *said),
        body,
        store,
        settings,
        once,
    )


@router.post("/experts/own/{kind}", dependencies=[needs(Right.ADMINISTER)], responses=problems(409, 413, 415, 422))
def install_expert(kind: OwnKind, body: ExpertCreate, store: StoreDep, settings: SettingsDep, once: OnceDep) -> Expert:
    """Register one of Preceptor's own experts where its process listens now: what `preceptor up` and `init` do.

    Errors: NotAnExpert, SecretUnusable (422), EndpointTaken (409).
    """
    return _check_and(
        lambda session, lineage_id, *said: experts.install(session, lineage_id, kind, *said),
        body,
        store,
        settings,
        once,
    )


def _check_and(
    register: Callable[[Session, UUID, ExpertCreate, ConformanceReport], experts.Registration],
    body: ExpertCreate,
    store: Store,
    settings: Settings,
    once: Once,
) -> ExpertRegistered:
    """Run the conformance suite, then write down what it found."""
    with store.transaction() as session:
        once.check(session)
        lineage_id = lineages.get(session, settings.lineage).id
    report = asyncio.run(_check(str(body.endpoint).rstrip("/"), body.signing_secret, settings))
    with store.transaction() as session:
        return once(
            session, lambda: _register(session, lineage_id, lambda: register(session, lineage_id, body, report))
        )


SETTINGS: Final = (
    "endpoint",
    "version",
    "status",
    "granted",
    "trusted",
    "weight",
    "group_fraction",
    "rollouts_per_group",
    "top_k",
    "temperature",
)
"""What registering again may change."""


def _register(session: Session, lineage_id: UUID, register: Callable[[], experts.Registration]) -> ExpertRegistered:
    before = experts.settings_by_id(session, lineage_id, SETTINGS)
    done = register()
    after = experts.view(done.expert)
    old = before.get(after.id if done.replaced is None else done.replaced.id)
    new = after.model_dump(mode="json")
    changed = (
        []
        if old is None
        else [f"{name}: {_tell(old[name])} → {_tell(new[name])}" for name in SETTINGS if old[name] != new[name]]
    )
    return ExpertRegistered(**after.model_dump(), changed=changed, warnings=[*_warn_of_metadata(after)])


def _tell(setting: Json) -> str:
    if isinstance(setting, list):
        return ", ".join(map(str, setting)) or "nothing"
    return "not set" if setting is None else str(setting)


def _warn_of_metadata(expert: Expert) -> Iterator[str]:
    if expert.ungranted:
        options = " ".join(f"--grant {key}" for key in expert.descriptor.metadata_keys)
        yield (
            f"it needs the metadata {', '.join(expert.ungranted)} and was not granted it, so it cannot judge: "
            f"`preceptor experts add {expert.endpoint} {options}` grants it"
        )


async def _check(endpoint: str, secret: str | None, settings: Settings) -> ConformanceReport:
    async with ExpertClient(settings.allowed_expert_networks) as client:
        return await conformance.check(endpoint, secret, client)


@router.get("/experts", dependencies=[needs(Right.READ)], responses=problems(422))
def list_experts(
    caller: CallerDep, store: StoreDep, settings: SettingsDep, paging: PagingDep, status: ExpertStatus | None = None
) -> Page[Expert]:
    """Experts with their descriptors and conformance reports, newest first. Why one that was granted metadata is in
    quarantine is null for all but owners and operators. Errors: BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        return browse.list_experts(
            session, lineage.id, caller.rights, status=status, cursor=paging.cursor, limit=paging.limit
        )


@router.get("/experts/{expert_id}", dependencies=[needs(Right.READ)], responses=problems(404))
def get_expert(expert_id: UUID, caller: CallerDep, store: StoreDep) -> Expert:
    """One expert. Errors: ExpertNotFound (404)."""
    with store.reading() as session:
        return experts.view(experts.get(session, expert_id), caller.rights)


@router.post("/experts/{expert_id}/activate", dependencies=[needs(Right.OPERATE)], responses=problems(404, 409))
def activate_expert(expert_id: UUID, store: StoreDep, once: OnceDep) -> Expert:
    """Let an expert's answers train. Errors: ExpertNotFound (404), NotConformant, IllegalStatusChange (409)."""
    with store.transaction() as session:
        return once(session, lambda: experts.view(experts.activate(session, expert_id)))


@router.post(
    "/experts/{expert_id}/pause", dependencies=[needs(Right.OPERATE)], responses=problems(404, 409, 413, 415, 422)
)
def pause_expert(expert_id: UUID, store: StoreDep, once: OnceDep, body: WhyBody = NO_REASON) -> Expert:
    """Ask an expert nothing for a while; its pending questions wait. Errors: ExpertNotFound (404),
    IllegalStatusChange (409)."""
    with store.transaction() as session:
        return once(session, lambda: experts.view(experts.pause(session, expert_id, body.reason)))


@router.post(
    "/experts/{expert_id}/retire", dependencies=[needs(Right.OPERATE)], responses=problems(404, 409, 413, 415, 422)
)
def retire_expert(expert_id: UUID, store: StoreDep, once: OnceDep, body: WhyBody = NO_REASON) -> Expert:
    """Let an expert go for good: its open questions end with the reason and their rollouts move on without it.

    Errors: ExpertNotFound (404), IllegalStatusChange (409).
    """
    with store.transaction() as session:
        retired = once(session, lambda: experts.view(experts.retire(session, expert_id, body.reason)))
    dispatch.lessons()
    return retired


@router.post("/experts/{expert_id}/requeue", dependencies=[needs(Right.OPERATE)], responses=problems(404, 409))
def requeue_expert(expert_id: UUID, store: StoreDep, once: OnceDep) -> Expert:
    """Ask an expert's dead questions again; one in quarantine goes back to probation.

    Errors: ExpertNotFound (404), IllegalStatusChange (409) when it retired.
    """
    asked: list[UUID] = []
    with store.transaction() as session:
        requeued = once(session, lambda: _requeue(session, expert_id, asked))
    dispatch.consultations(asked)
    return requeued


def _requeue(session: Session, expert_id: UUID, asked: list[UUID]) -> Expert:
    row, ids = experts.requeue(session, expert_id)
    asked += ids
    return experts.view(row)
