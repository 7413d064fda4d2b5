"""Consultations of experts about rollouts, and the answers that come late."""

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool

from services.acts import consultations as acts
from services.acts.call import Call
from services.api.auth import BearerDep, CallerDep, identify, needs, to_actor
from services.api.calls import CallDep, KeyHeader, build_claim
from services.api.deps import AppStateDep, PagingDep, SettingsDep, StoreDep
from services.api.routes.common import build_router, problems
from services.contracts.audit import Via
from services.contracts.base import Page
from services.contracts.consultations import Consultation, ConsultationDetail, ConsultationStatus, Requeued
from services.contracts.experts import ConsultResponse
from services.contracts.persons import Right
from services.experts.protocol import signatures
from services.runtime.errors import Conflict, PreceptorError
from services.store.core.audit import Actor
from services.store.core.transaction import Store
from services.store.loop import consultations, experts, lineages, trust
from services.store.tables.loop import ExpertRow
from services.store.views import browse

router = build_router("consultations")


class AnsweredByPeople(Conflict):
    """The consultation is one of the human queue's; only a person who holds its item answers it."""

    hint = "Claim its item with POST /v1/corrections/claim, and submit it."


class SignatureRefused(PreceptorError):
    """The answer's signature does not hold."""

    status_code = 401
    title = "Signature not accepted"
    hint = (
        "Sign the body with the secret the expert was registered with, as the Standard Webhooks specification says, "
        "with the consultation's id as webhook-id."
    )


@router.get("/consultations", dependencies=[needs(Right.READ)], responses=problems(422))
def list_consultations(
    caller: CallerDep,
    store: StoreDep,
    settings: SettingsDep,
    paging: PagingDep,
    expert_id: UUID | None = None,
    status: ConsultationStatus | None = None,
) -> Page[Consultation]:
    """Consultations, newest first. Reasons in which an expert may quote metadata are null for all but owners and
    operators. Errors: BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        return browse.list_consultations(
            session,
            lineage.id,
            caller.rights,
            rollout_id=None,
            expert_id=expert_id,
            status=status,
            cursor=paging.cursor,
            limit=paging.limit,
        )


@router.get("/consultations/{consultation_id}", dependencies=[needs(Right.READ)], responses=problems(404))
def get_consultation(consultation_id: UUID, caller: CallerDep, store: StoreDep) -> ConsultationDetail:
    """One consultation with every try at it. Reasons in which an expert may quote metadata are null for all but owners
    and operators. Errors: ConsultationNotFound (404)."""
    with store.reading() as session:
        return browse.consultation(session, consultation_id, caller.rights)


async def _get_call_of_expert(
    request: Request, consultation_id: UUID, app_state: AppStateDep, bearer: BearerDep, key: KeyHeader = None
) -> Call:
    """The caller of a late answer: the expert whose signature is valid; for one without a secret, an operator.

    Errors: SignatureRefused, KeyMissing, KeyUnknown (401), NotAllowed (403), ConsultationNotFound (404),
    AnsweredByPeople (409).
    """
    if signatures.ID_HEADER in request.headers:
        body = await request.body()
        expert_id = await run_in_threadpool(_verify, app_state.store, consultation_id, dict(request.headers), body)
        address = request.client.host if request.client else None
        principal, actor = f"expert:{expert_id}", Actor(Via.SIGNATURE, None, expert_id, address)
    else:
        caller = await run_in_threadpool(identify, bearer, app_state.store, app_state.settings)
        caller.must(Right.OPERATE)
        await run_in_threadpool(_check_unsigned, app_state.store, consultation_id)
        principal, actor = str(caller.id), to_actor(caller, request)
    claim = await build_claim(request, principal, key)
    return Call(store=app_state.store, settings=app_state.settings, actor=actor, claim=claim)


def _check_unsigned(store: Store, consultation_id: UUID) -> None:
    with store.reading() as session:
        expert = experts.get(session, consultations.get(session, consultation_id).expert_id)
        _check_answers_itself(expert)
    if expert.signing_secret is not None:
        raise SignatureRefused(f"the expert {expert.name!r} signs its answers, and this one is not signed")


def _check_answers_itself(expert: ExpertRow) -> None:
    if trust.is_people(expert):
        raise AnsweredByPeople("answer this consultation through its correction")


def _verify(store: Store, consultation_id: UUID, headers: dict[str, str], body: bytes) -> UUID:
    with store.reading() as session:
        expert = experts.get(session, consultations.get(session, consultation_id).expert_id)
        secret = expert.signing_secret
    if secret is None:
        raise SignatureRefused(
            "the expert was registered without a signing secret", hint="Send an owner's or operator's API key instead."
        )
    try:
        signed_id = signatures.verify(secret, headers, body)
    except signatures.SignatureInvalid as error:
        raise SignatureRefused(str(error)) from None
    if signed_id != str(consultation_id):
        raise SignatureRefused(f"the webhook-id is {signed_id[:100]!r}, not this consultation's id")
    _check_answers_itself(expert)
    return expert.id


@router.post("/consultations/{consultation_id}/answer", responses=problems(404, 409, 413, 415, 422))
def answer_late(
    consultation_id: UUID, body: ConsultResponse, call: Annotated[Call, Depends(_get_call_of_expert)]
) -> ConsultationDetail:
    """Give the answer to a consultation to which the expert replied 202.

    Signed with the expert's secret (Standard Webhooks, `webhook-id` is the consultation's id). For an expert without a
    secret an owner's or operator's API key stands in. People answer the human expert's consultations through
    corrections. An answer that does not fit its rollout makes the consultation `invalid`, with the reason, for good.
    An answer that comes after the rollout was ready opens a second lesson with its own terms only.

    Errors: SignatureRefused (401), NotAllowed (403), ConsultationNotFound (404), NotWaiting,
    AnsweredByPeople (409).
    """
    return acts.answer(call, consultation_id, body)


@router.post("/consultations/requeue", dependencies=[needs(Right.OPERATE)], responses=problems(409))
def requeue_consultations(call: CallDep) -> Requeued:
    """Ask dead consultations again, the oldest first, up to 1,000 at once; `has_more` says that there may be others.

    Those of retired experts stay dead.
    """
    return acts.requeue_all(call)


@router.post(
    "/consultations/{consultation_id}/requeue", dependencies=[needs(Right.OPERATE)], responses=problems(404, 409)
)
def requeue_consultation(consultation_id: UUID, call: CallDep) -> ConsultationDetail:
    """Ask a dead consultation again. Errors: ConsultationNotFound (404), IllegalStatusChange (409)."""
    return acts.requeue(call, consultation_id)
