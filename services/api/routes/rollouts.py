"""Rollouts: answers to a task, ours and those sampled elsewhere."""

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import Query
from sqlalchemy.orm import Session

from services.api.auth import Right, needs
from services.api.deps import HouseDep, PagingDep, SettingsDep, StoreDep
from services.api.once import OnceDep
from services.api.routes.common import build_router, problems
from services.api.space import needs_space
from services.contracts.answers import Answer
from services.contracts.base import Page
from services.contracts.consultations import Consultation
from services.contracts.rollouts import (
    MAX_ROLLOUT_TOKENS,
    Purpose,
    Rollout,
    RolloutCreate,
    RolloutDetail,
    RolloutStatus,
)
from services.contracts.tasks import Message, Task
from services.errors import InvalidInput
from services.jobs import dispatch
from services.policy.client import PolicyClient, PolicyRefused, PolicyUnavailable
from services.policy.contract import TokenizeRequest
from services.store import browse, consultations, lineages, rollouts, tasks

router = build_router("rollouts")


class RolloutTooLong(InvalidInput):
    """The rollout is more tokens than one may have, or with its prompt more than the policy can read."""

    hint = "Send a shorter rollout, or one for a task with a shorter prompt."


@dataclass(frozen=True)
class Tokens:
    """A rollout as the policy's tokenizer reads it."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    text: str


@router.post(
    "/rollouts",
    status_code=201,
    dependencies=[needs(Right.SEND), needs_space],
    responses=problems(404, 409, 413, 415, 422, 507),
)
def add_rollout(body: RolloutCreate, house: HouseDep, once: OnceDep) -> RolloutDetail:
    """Add a rollout that was sampled elsewhere, and consult every matching expert about it.

    Send either `token_ids` with `tokenizer_hash` (kept exactly as they are; `sampler_logprobs` and `action_mask` may
    come with them) or `text`, which is tokenised here, once, and trains the local term only. Siblings of one prompt
    share a group: give each further one the `group_id` of the first.

    Errors: TaskNotFound (404); TokenizerDiffers, OutsideVocabulary, NotTrainable for a task that is not for training,
    NoSuchVersion, RolloutTooLong, also when it is longer than the policy's context with its prompt (422);
    PolicyUnavailable (503), since the policy tokenises the prompt; OutOfSpace (507).
    """
    with house.store.transaction() as session:
        once.check(session)
        lineage = lineages.get(session, house.settings.lineage)
        task_row = tasks.get(session, body.task_id)
        rollouts.check_external(session, lineage, task_row, body)
        task = tasks.view(task_row)
    try:
        tokens = _tokenize(house.policy, task, body)
    except PolicyRefused as error:
        if error.status_code in (401, 403):  # our key, not the caller's
            raise PolicyUnavailable("the policy process does not accept this api's key") from None
        raise
    with house.store.transaction() as session:
        rollout = once(session, lambda: _add(session, house.settings.lineage, body, tokens))
        asked = consultations.pending_of(session, [rollout.id])
    dispatch.consultations(asked)
    return rollout


def _tokenize(policy: PolicyClient, task: Task, body: RolloutCreate) -> Tokens:
    messages = [Message.model_validate(message) for message in task.messages]
    prompt = policy.tokenize(TokenizeRequest(messages=messages)).token_ids
    max_context = policy.info().max_context
    if body.token_ids is not None:
        _check_fits(len(prompt), len(body.token_ids), max_context)
        return Tokens(prompt, body.token_ids, policy.detokenize(body.token_ids))
    assert body.text is not None, "the contract asks for text or token_ids"
    ids = policy.tokenize(TokenizeRequest(text=body.text)).token_ids
    if len(ids) > MAX_ROLLOUT_TOKENS:
        raise RolloutTooLong(f"the text is {len(ids):,} tokens; a rollout has at most {MAX_ROLLOUT_TOKENS:,}")
    _check_fits(len(prompt), len(ids), max_context)
    return Tokens(prompt, ids, body.text)


def _check_fits(num_prompt_tokens: int, num_tokens: int, max_context: int) -> None:
    """Pass when the policy can read the prompt and the rollout at once. Errors: RolloutTooLong (422)."""
    if num_prompt_tokens + num_tokens > max_context:
        raise RolloutTooLong(
            f"the prompt's {num_prompt_tokens:,} tokens and the rollout's {num_tokens:,} are more than the policy's "
            f"context of {max_context:,}"
        )


def _add(session: Session, lineage_name: str, body: RolloutCreate, tokens: Tokens) -> RolloutDetail:
    row = rollouts.add_external(
        session,
        lineages.get(session, lineage_name),
        tasks.get(session, body.task_id),
        body,
        tokens.prompt_token_ids,
        tokens.token_ids,
        tokens.text,
        tokenized_at_ingest=body.token_ids is None,
    )
    session.flush()
    session.refresh(row)
    return RolloutDetail.model_validate(row)


@router.get("/rollouts", dependencies=[needs(Right.READ)], responses=problems(422))
def list_rollouts(
    store: StoreDep,
    settings: SettingsDep,
    paging: PagingDep,
    task_id: UUID | None = None,
    group_id: UUID | None = None,
    status: RolloutStatus | None = None,
    purpose: Annotated[Purpose | None, Query(description="What the rollouts were drawn for.")] = None,
) -> Page[Rollout]:
    """Rollouts without their tokens, newest first. Errors: BadCursor (422)."""
    with store.transaction() as session:
        lineage = lineages.get(session, settings.lineage)
        return browse.list_rollouts(
            session,
            lineage.id,
            task_id=task_id,
            group_id=group_id,
            status=status,
            purpose=purpose,
            cursor=paging.cursor,
            limit=paging.limit,
        )


@router.get("/rollouts/{rollout_id}", dependencies=[needs(Right.READ)], responses=problems(404))
def get_rollout(rollout_id: UUID, store: StoreDep) -> RolloutDetail:
    """One rollout with its tokens. Errors: RolloutNotFound (404)."""
    with store.transaction() as session:
        return RolloutDetail.model_validate(rollouts.get(session, rollout_id))


@router.get("/rollouts/{rollout_id}/consultations", dependencies=[needs(Right.READ)], responses=problems(404, 422))
def list_consultations_of_rollout(rollout_id: UUID, store: StoreDep, paging: PagingDep) -> Page[Consultation]:
    """The questions asked about a rollout, newest first. Errors: RolloutNotFound (404), BadCursor (422)."""
    with store.transaction() as session:
        rollout = rollouts.get(session, rollout_id)
        return browse.list_consultations(
            session,
            rollout.lineage_id,
            rollout_id=rollout.id,
            expert_id=None,
            status=None,
            cursor=paging.cursor,
            limit=paging.limit,
        )


@router.get("/rollouts/{rollout_id}/answers", dependencies=[needs(Right.READ)], responses=problems(404, 422))
def list_answers_of_rollout(rollout_id: UUID, store: StoreDep, paging: PagingDep) -> Page[Answer]:
    """What experts said about a rollout, newest first. Errors: RolloutNotFound (404), BadCursor (422)."""
    with store.transaction() as session:
        rollout = rollouts.get(session, rollout_id)
        return browse.list_answers(session, rollout.id, cursor=paging.cursor, limit=paging.limit)
