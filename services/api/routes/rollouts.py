"""Rollouts: answers to a task, ours and those sampled elsewhere."""

from collections import Counter
from typing import Annotated
from uuid import UUID

from fastapi import Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials
from pydantic import BaseModel

from services.api.auth import BearerDep, CallerDep, needs
from services.api.calls import REPLAY_HEADER, KeyHeader
from services.api.deps import PagingDep, SettingsDep, StoreDep
from services.api.group_commit import GroupCommitDep
from services.api.ingest import IngestDep, Row, Sender, find_refusal
from services.api.limits import ContractRoute
from services.api.routes.common import build_router, problems
from services.contracts.answers import Answer
from services.contracts.base import Page
from services.contracts.consultations import Consultation
from services.contracts.persons import Right
from services.contracts.rollouts import (
    BatchedOutcome,
    Purpose,
    Rollout,
    RolloutBatch,
    RolloutCreate,
    RolloutDetail,
    RolloutsStored,
    RolloutStatus,
    RowOutcome,
)
from services.http.problems import describe
from services.runtime.errors import PreceptorError
from services.store.loop import lineages, rollouts
from services.store.loop.ingest import Outcome, Replayed
from services.store.views import browse

router = build_router("rollouts", ContractRoute)


@router.post("/rollouts", status_code=201, response_model=Rollout, responses=problems(404, 409, 413, 415, 422, 507))
async def add_rollout(
    body: RolloutCreate,
    request: Request,
    ingest: IngestDep,
    group_commit: GroupCommitDep,
    bearer: BearerDep,
    key: KeyHeader = None,
) -> Response:
    """Add a rollout that was sampled elsewhere, and consult every matching expert about it.

    Send either `token_ids` with `tokenizer_hash` (kept exactly as they are; `sampler_logprobs` and `action_mask` may
    come with them) or `text`, which is tokenised here, once, and trains the local term only. Siblings of one prompt
    share a group: give each further one the `group_id` of the first. The answer comes after the commit, which the
    rollout shares with others that arrive at the same time.

    Errors: TaskNotFound (404); TokenizerDiffers, OutsideVocabulary, NotTrainable for a task that is not for training,
    NoSuchVersion, RolloutTooLong, also when it is longer than the policy's context with its prompt, NotItsGroup (422);
    PolicyUnavailable, since the policy tokenises the prompt, IngestBusy (503); OutOfSpace (507).
    """
    with ingest.hold(1, len(await request.body())):
        outcome = await group_commit.add(Row(_find_sender(request, bearer), body, key))
    if isinstance(outcome, PreceptorError):
        raise outcome
    if isinstance(outcome, Replayed):
        return _respond(outcome.rollout, 201, {REPLAY_HEADER: "true"})
    return _respond(outcome, 201)


@router.post("/rollouts/batch", response_model=RolloutsStored, responses=problems(409, 413, 415, 422, 507))
async def add_rollouts(
    body: RolloutBatch, request: Request, ingest: IngestDep, bearer: BearerDep, key: KeyHeader = None
) -> Response:
    """Add up to 1,000 rollouts sampled elsewhere: each with its own outcome, all accepted ones in one transaction.

    Each row has the fields of `POST /v1/rollouts` and two more. `key` is the row's own idempotency key: a row stored
    before, by either route, is `existing` and is not stored again, so that a whole batch may be repeated. Rows without
    a key get one from the header: `K` stands for `K/1`, `K/2`, … Rows with the same `group` are siblings.

    An invalid row is `refused` with its problem and does not affect the others. A batch that breaks the contract is
    refused as a whole (422). After a 503 no row was stored.

    Errors: PolicyUnavailable, IngestBusy (503); OutOfSpace (507).
    """
    sender = _find_sender(request, bearer)
    rows = [
        Row(sender, rollout, rollout.key or (None if key is None else f"{key}/{number}"))
        for number, rollout in enumerate(body.rollouts, start=1)
    ]
    with ingest.hold(len(rows), len(await request.body())):
        outcomes = await run_in_threadpool(ingest.store, rows)
    if (refusal := find_refusal(outcomes)) is not None:
        raise refusal
    described = [_describe(number, outcome) for number, outcome in enumerate(outcomes, start=1)]
    counts = Counter(one.outcome for one in described)
    stored = RolloutsStored(
        num_created=counts[RowOutcome.CREATED],
        num_existing=counts[RowOutcome.EXISTING],
        num_refused=counts[RowOutcome.REFUSED],
        rollouts=described,
    )
    return _respond(stored, 200)


def _find_sender(request: Request, bearer: HTTPAuthorizationCredentials | None) -> Sender:
    address = request.client.host if request.client else None
    return Sender(None if bearer is None else bearer.credentials, address)


def _respond(view: BaseModel, status_code: int, headers: dict[str, str] | None = None) -> Response:
    return Response(view.model_dump_json(), status_code, headers, media_type="application/json")


def _describe(number: int, outcome: Outcome) -> BatchedOutcome:
    if isinstance(outcome, PreceptorError):
        return BatchedOutcome(row=number, outcome=RowOutcome.REFUSED, problem=describe(outcome))
    rollout = outcome.rollout if isinstance(outcome, Replayed) else outcome
    return BatchedOutcome(
        row=number,
        outcome=RowOutcome.EXISTING if isinstance(outcome, Replayed) else RowOutcome.CREATED,
        id=rollout.id,
        group_id=rollout.group_id,
        index_in_group=rollout.index_in_group,
        status=rollout.status,
        reason=rollout.reason,
    )


@router.get("/rollouts", dependencies=[needs(Right.READ)], responses=problems(422))
def list_rollouts(
    caller: CallerDep,
    store: StoreDep,
    settings: SettingsDep,
    paging: PagingDep,
    task_id: UUID | None = None,
    group_id: UUID | None = None,
    status: RolloutStatus | None = None,
    purpose: Annotated[Purpose | None, Query(description="The purpose of the rollouts.")] = None,
    domain: Annotated[str | None, Query(max_length=200, description="The domain of their tasks.")] = None,
) -> Page[Rollout]:
    """Rollouts without their tokens, newest first. `shown`: drawn by a teacher; of those that may quote metadata of a
    task only owners and operators see the text. Errors: BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        return browse.list_rollouts(
            session,
            lineage.id,
            caller.rights,
            task_id=task_id,
            group_id=group_id,
            status=status,
            purpose=purpose,
            domain=domain,
            cursor=paging.cursor,
            limit=paging.limit,
        )


@router.get("/rollouts/{rollout_id}", dependencies=[needs(Right.READ)], responses=problems(404))
def get_rollout(rollout_id: UUID, caller: CallerDep, store: StoreDep) -> RolloutDetail:
    """One rollout with its tokens, and with what the teacher was shown if one drew it. Where that may quote metadata of
    a task, owners and operators see it, the prompt and the words; for others they are null or empty. Errors:
    RolloutNotFound (404)."""
    with store.reading() as session:
        return rollouts.detail(session, rollouts.get(session, rollout_id), caller.rights)


@router.get("/rollouts/{rollout_id}/consultations", dependencies=[needs(Right.READ)], responses=problems(404, 422))
def list_consultations_of_rollout(
    rollout_id: UUID, caller: CallerDep, store: StoreDep, paging: PagingDep
) -> Page[Consultation]:
    """The consultations about a rollout, newest first. Reasons in which an expert may quote metadata are null for all
    but owners and operators. Errors: RolloutNotFound (404), BadCursor (422)."""
    with store.reading() as session:
        rollout = rollouts.get(session, rollout_id)
        return browse.list_consultations(
            session,
            rollout.lineage_id,
            caller.rights,
            rollout_id=rollout.id,
            expert_id=None,
            status=None,
            cursor=paging.cursor,
            limit=paging.limit,
        )


@router.get("/rollouts/{rollout_id}/answers", dependencies=[needs(Right.READ)], responses=problems(404, 422))
def list_answers_of_rollout(rollout_id: UUID, caller: CallerDep, store: StoreDep, paging: PagingDep) -> Page[Answer]:
    """Answers about a rollout, newest first. Owners and operators see them in full; for others `feedback`,
    `solution` and `evidence` of an expert that was given metadata of the task are null, for they may quote it.

    Errors: RolloutNotFound (404), BadCursor (422).
    """
    with store.reading() as session:
        rollout = rollouts.get(session, rollout_id)
        return browse.list_answers(session, rollout.id, caller.rights, cursor=paging.cursor, limit=paging.limit)
