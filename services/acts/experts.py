"""Acts on experts: registering a service after its conformance checks, whether it is consulted, and how it trains."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Final
from uuid import UUID

from sqlalchemy.orm import Session

from services.acts.call import Call
from services.contracts.base import Json, JsonObject
from services.contracts.experts import ConformanceReport, Expert, ExpertCreate, ExpertRegistered, OwnKind
from services.experts.protocol import conformance, sample_tokens
from services.experts.protocol.client import ExpertClient
from services.jobs import dispatch
from services.runtime.settings import Settings
from services.store.loop import experts

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
    "num_places",
    "num_samples",
)
"""What registering again may change."""

Register = Callable[[Session, UUID, ExpertCreate, ConformanceReport], experts.Registration]


def register(call: Call, wanted: ExpertCreate) -> ExpertRegistered:
    """Register an expert by its URL: read its descriptor, run the conformance suite, store the report.

    Errors: NotAnExpert, SecretUnusable (422), ExpertNameTaken, EndpointTaken (409).
    """
    return _check_and(experts.register, "experts.register", call, wanted, None)


def move(call: Call, expert_id: UUID, wanted: ExpertCreate) -> ExpertRegistered:
    """Register an expert at another address, with new settings.

    Errors: ExpertNotFound (404), NotAnExpert, SecretUnusable (422), ExpertRetired, ExpertNameTaken, EndpointTaken
    (409).
    """
    with call.store.reading() as session:
        experts.get(session, expert_id)

    def move_it(
        session: Session, lineage_id: UUID, wanted: ExpertCreate, report: ConformanceReport
    ) -> experts.Registration:
        return experts.move(session, lineage_id, expert_id, wanted, report)

    return _check_and(move_it, "experts.move", call, wanted, expert_id)


def install(call: Call, kind: OwnKind, wanted: ExpertCreate) -> ExpertRegistered:
    """Register one of Preceptor's own experts where its process listens now.

    Errors: NotAnExpert, SecretUnusable (422), EndpointTaken (409).
    """

    def install_it(
        session: Session, lineage_id: UUID, wanted: ExpertCreate, report: ConformanceReport
    ) -> experts.Registration:
        return experts.install(session, lineage_id, kind, wanted, report)

    return _check_and(install_it, "experts.install", call, wanted, None)


def activate(call: Call, expert_id: UUID) -> Expert:
    """Let an expert's answers train. Errors: ExpertNotFound (404), NotConformant, IllegalStatusChange (409)."""
    with call.begin() as act:
        active = act.keep(experts.view(experts.activate(act.session, expert_id)))
        act.record("experts.activate", "expert", expert_id)
    return active


def pause(call: Call, expert_id: UUID, reason: str) -> Expert:
    """Stop consulting an expert for a while; its pending consultations wait.

    Errors: ExpertNotFound (404), IllegalStatusChange (409).
    """
    with call.begin() as act:
        paused = act.keep(experts.view(experts.pause(act.session, expert_id, reason)))
        act.record("experts.pause", "expert", expert_id)
    return paused


def weigh(call: Call, expert_id: UUID, weight: float) -> Expert:
    """Set how much an expert's answers weigh in the loss from the next update on.

    Errors: ExpertNotFound (404), ExpertRetired (409).
    """
    with call.begin() as act:
        weighed = act.keep(experts.view(experts.weigh(act.session, expert_id, weight)))
        act.record("experts.weight", "expert", expert_id, {"weight": weight})
    return weighed


def retire(call: Call, expert_id: UUID, reason: str) -> Expert:
    """Retire an expert for good: its open consultations end with the reason, and their rollouts move on without it.

    Errors: ExpertNotFound (404), IllegalStatusChange (409).
    """
    with call.begin() as act:
        retired = act.keep(experts.view(experts.retire(act.session, expert_id, reason)))
        act.record("experts.retire", "expert", expert_id)
    dispatch.lessons()
    return retired


def requeue(call: Call, expert_id: UUID) -> tuple[Expert, int]:
    """Retry an expert's dead consultations, and return the expert and their number; one in quarantine goes back to
    probation.

    Errors: ExpertNotFound (404), IllegalStatusChange (409) when it is retired.
    """
    with call.begin() as act:
        row, asked = experts.requeue(act.session, expert_id)
        requeued = act.keep(experts.view(row))
        act.record("experts.requeue", "expert", expert_id, {"consultations": len(asked)})
    dispatch.consultations(asked)
    return requeued, len(asked)


def _check_and(
    register: Register, action: str, call: Call, wanted: ExpertCreate, expert_id: UUID | None
) -> ExpertRegistered:
    """Run the conformance suite, which takes a while, and then store what it found."""
    call.check()
    report = asyncio.run(_check(str(wanted.endpoint).rstrip("/"), wanted.signing_secret, call.settings))
    with call.begin() as act:
        lineage_id = act.lineage.id
        before = experts.settings_by_id(act.session, lineage_id, SETTINGS)
        done = register(act.session, lineage_id, wanted, report)
        expert = experts.view(done.expert)
        old = before.get(expert.id if done.replaced is None else done.replaced.id)
        changed = [] if old is None else [*_list_changes(old, expert.model_dump(mode="json"))]
        act.record(action, "expert", expert_id or expert.id)
        return act.keep(ExpertRegistered(**expert.model_dump(), changed=changed, warnings=[*_warn_of_metadata(expert)]))


async def _check(endpoint: str, secret: str | None, settings: Settings) -> ConformanceReport:
    tokens = await asyncio.to_thread(sample_tokens.read, settings.policy_url, settings.internal_key)
    async with ExpertClient(settings.allowed_expert_networks) as client:
        return await conformance.check(endpoint, secret, client, tokens)


def _list_changes(old: JsonObject, new: JsonObject) -> Iterator[str]:
    for name in SETTINGS:
        if old[name] != new[name]:
            yield f"{name}: {_print(old[name])} → {_print(new[name])}"


def _print(setting: Json) -> str:
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
