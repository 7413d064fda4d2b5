"""Experts: services registered by URL, their conformance, and whether they are asked and trained on."""

from typing import Annotated
from uuid import UUID

from fastapi import Body

from services.acts import experts as acts
from services.api.auth import CallerDep, needs
from services.api.calls import CallDep, PlainCallDep
from services.api.deps import PagingDep, SettingsDep, StoreDep
from services.api.routes.common import build_router, problems
from services.contracts.base import Page
from services.contracts.calibrations import Calibration
from services.contracts.experts import (
    Expert,
    ExpertCreate,
    ExpertRegistered,
    ExpertStatus,
    ExpertWeight,
    OwnKind,
    Why,
)
from services.contracts.persons import Right
from services.store.loop import experts, lineages, opinions
from services.store.views import browse
from services.store.views import experts as expert_figures

router = build_router("experts")


NO_REASON = Why()
WhyBody = Annotated[Why, Body()]


@router.post("/experts", status_code=201, dependencies=[needs(Right.OPERATE)], responses=problems(409, 413, 415, 422))
def register_expert(body: ExpertCreate, call: CallDep) -> ExpertRegistered:
    """Register an expert by its URL: its descriptor is read, the conformance suite runs, its report is stored.

    It starts on probation (consulted, but excluded from training), or `active` if it is `trusted` and every check
    passed. The endpoint identifies an expert: registering it again makes a new report and sets all settings again, with
    defaults for omitted ones; `changed` lists the differences. If its descriptor has changed, a new version replaces
    the old one, which retires. The name of another live expert is refused. `warnings` lists metadata that it declares
    but was not granted.

    Errors: NotAnExpert for an address that is not allowed, does not answer, redirects or answers HTML or anything else
    but a descriptor, SecretUnusable (422); ExpertNameTaken, EndpointTaken (409).
    """
    return acts.register(call, body)


@router.post(
    "/experts/{expert_id}/move",
    dependencies=[needs(Right.OPERATE)],
    responses=problems(404, 409, 413, 415, 422),
)
def move_expert(expert_id: UUID, body: ExpertCreate, call: CallDep) -> ExpertRegistered:
    """Register an expert at another address, with new settings. It goes through probation there, unless `trusted`.

    Errors: ExpertNotFound (404), NotAnExpert, SecretUnusable (422), ExpertRetired, ExpertNameTaken, EndpointTaken
    (409).
    """
    return acts.move(call, expert_id, body)


@router.post("/experts/own/{kind}", dependencies=[needs(Right.ADMINISTER)], responses=problems(409, 413, 415, 422))
def install_expert(kind: OwnKind, body: ExpertCreate, call: CallDep) -> Expert:
    """Register a built-in expert at the address of its process, as `preceptor up` and `init` do.

    Errors: NotAnExpert, SecretUnusable (422), EndpointTaken (409).
    """
    return acts.install(call, kind, body)


@router.get("/experts", dependencies=[needs(Right.READ)], responses=problems(422))
def list_experts(
    caller: CallerDep, store: StoreDep, settings: SettingsDep, paging: PagingDep, status: ExpertStatus | None = None
) -> Page[Expert]:
    """Experts with their descriptors and conformance reports, newest first, with their share of the loss and what they
    were measured to teach. Why one that was granted metadata is in quarantine is null for all but owners and operators.
    Errors: BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        found = browse.list_experts(
            session, lineage.id, caller.rights, status=status, cursor=paging.cursor, limit=paging.limit
        )
        return found.model_copy(update={"items": expert_figures.add_worth(session, lineage.id, found.items)})


@router.get("/calibrations", dependencies=[needs(Right.READ)])
def list_calibrations(store: StoreDep, settings: SettingsDep) -> Page[Calibration]:
    """How well the scores of experts that are no verifiers tell right answers from wrong ones, by expert, domain and
    signal: against the verdicts on the same rollouts, the newest 1,000 of each expert."""
    with store.reading() as session:
        known = opinions.read(session, lineages.get(session, settings.lineage).id)
    return Page[Calibration](items=[*known.calibrations], next_cursor=None)


@router.get("/experts/{expert_id}", dependencies=[needs(Right.READ)], responses=problems(404))
def get_expert(expert_id: UUID, caller: CallerDep, store: StoreDep) -> Expert:
    """One expert, with its share of the loss and what it was measured to teach. Errors: ExpertNotFound (404)."""
    with store.reading() as session:
        row = experts.get(session, expert_id)
        [found] = expert_figures.add_worth(session, row.lineage_id, [experts.view(row, caller.rights)])
        return found


@router.post("/experts/{expert_id}/activate", dependencies=[needs(Right.OPERATE)], responses=problems(404, 409))
def activate_expert(expert_id: UUID, call: CallDep) -> Expert:
    """Let an expert's answers train. Errors: ExpertNotFound (404), NotConformant, IllegalStatusChange (409)."""
    return acts.activate(call, expert_id)


@router.post(
    "/experts/{expert_id}/pause", dependencies=[needs(Right.OPERATE)], responses=problems(404, 409, 413, 415, 422)
)
def pause_expert(expert_id: UUID, call: CallDep, body: WhyBody = NO_REASON) -> Expert:
    """Stop consulting an expert for a while; its pending consultations wait.

    Errors: ExpertNotFound (404), IllegalStatusChange (409).
    """
    return acts.pause(call, expert_id, body.reason)


@router.put(
    "/experts/{expert_id}/weight", dependencies=[needs(Right.OPERATE)], responses=problems(404, 409, 413, 415, 422)
)
def weigh_expert(expert_id: UUID, body: ExpertWeight, call: PlainCallDep) -> Expert:
    """Set how much an expert's answers weigh in the loss from the next update on; at 0 they do not train.

    Errors: ExpertNotFound (404), ExpertRetired (409).
    """
    return acts.weigh(call, expert_id, body.weight)


@router.post(
    "/experts/{expert_id}/retire", dependencies=[needs(Right.OPERATE)], responses=problems(404, 409, 413, 415, 422)
)
def retire_expert(expert_id: UUID, call: CallDep, body: WhyBody = NO_REASON) -> Expert:
    """Let an expert go for good: its open consultations end with the reason and their rollouts move on without it.

    Errors: ExpertNotFound (404), IllegalStatusChange (409).
    """
    return acts.retire(call, expert_id, body.reason)


@router.post("/experts/{expert_id}/requeue", dependencies=[needs(Right.OPERATE)], responses=problems(404, 409))
def requeue_expert(expert_id: UUID, call: CallDep) -> Expert:
    """Retry an expert's dead consultations; one in quarantine goes back to probation.

    Errors: ExpertNotFound (404), IllegalStatusChange (409) when it retired.
    """
    expert, _ = acts.requeue(call, expert_id)
    return expert
