"""The api process as it runs, with the route it is compared with beside its own.

    python -m benchmarks.api.server --port 8700

`POST /orm/rollouts` is the plain way: a synchronous route in the threadpool, three calls to the policy, one
transaction of the ORM a request, the whole rollout as the answer. Keys, checks and consultations are the same.
"""

import argparse

import uvicorn
from fastapi import APIRouter, FastAPI
from sqlalchemy.orm import Session

from services.api.auth import Right, needs
from services.api.deps import HouseDep
from services.api.once import OnceDep
from services.contracts.rollouts import GroupStatus, RolloutCreate, RolloutDetail
from services.contracts.tasks import Message
from services.jobs import dispatch
from services.policy.client import PolicyClient
from services.policy.contract import TokenizeRequest
from services.runtime.settings import Settings
from services.store.loop import consultations, ingest, lineages, rollouts, tasks
from services.store.tables.base import LineageRow
from services.store.tables.loop import GroupRow, RolloutRow, TaskRow
from services.web.__main__ import freeze_heap
from services.web.app import create_app

router = APIRouter(prefix="/orm", tags=["rollouts"])


@router.post("/rollouts", status_code=201, dependencies=[needs(Right.SEND)])
def add_rollout(body: RolloutCreate, house: HouseDep, once: OnceDep) -> RolloutDetail:
    """Add a rollout that was sampled elsewhere, in a transaction of its own."""
    with house.store.transaction() as session:
        once.check(session)
        _, task = _check(session, house.settings.lineage, body)
    prompt, token_ids, text = _read(house.policy, task, body)
    with house.store.transaction() as session:
        rollout = once(session, lambda: _add(session, house.settings.lineage, body, prompt, token_ids, text))
        asked = consultations.pending_of(session, [rollout.id])
    dispatch.consultations(asked)
    return rollout


def _check(session: Session, lineage_name: str, body: RolloutCreate) -> tuple[LineageRow, TaskRow]:
    lineage = lineages.get(session, lineage_name)
    known = ingest.find_tasks(session, lineage.id, [body.task_id])[body.task_id]
    versions = ingest.find_versions(session, lineage.id, [body.policy_version or ""])
    ingest.check(lineage, known, body, versions)
    return lineage, tasks.get(session, body.task_id)


def _read(policy: PolicyClient, task: TaskRow, body: RolloutCreate) -> tuple[list[int], list[int], str]:
    messages = [Message.model_validate(message) for message in task.messages]
    prompt = policy.tokenize(TokenizeRequest(messages=messages)).token_ids
    token_ids = body.token_ids or policy.tokenize(TokenizeRequest(text=body.text)).token_ids
    if len(prompt) + len(token_ids) > policy.info().max_context:
        raise ValueError("longer than the policy's context")
    return prompt, token_ids, body.text or policy.detokenize(token_ids)


def _add(
    session: Session, lineage_name: str, body: RolloutCreate, prompt: list[int], token_ids: list[int], text: str
) -> RolloutDetail:
    lineage, task = _check(session, lineage_name, body)
    group = GroupRow(
        lineage_id=lineage.id,
        task_id=task.id,
        split=task.split,
        purpose=body.purpose.value,
        policy_version=body.policy_version,
        size=1,
        sampling={} if body.sampling is None else body.sampling.model_dump(mode="json"),
        external=True,
        status=GroupStatus.SAMPLED.value,
    )
    session.add(group)
    session.flush()
    row = RolloutRow(
        lineage_id=lineage.id,
        task_id=task.id,
        split=task.split,
        purpose=body.purpose.value,
        group_id=group.id,
        index_in_group=0,
        policy_version=body.policy_version,
        prompt_token_ids=prompt,
        token_ids=token_ids,
        sampler_logprobs=body.sampler_logprobs,
        action_mask=body.action_mask or [True] * len(token_ids),
        tokenizer_hash=lineage.tokenizer_hash,
        tokenized_at_ingest=body.token_ids is None,
        sampling=None if body.sampling is None else body.sampling.model_dump(mode="json"),
        text=text,
        finish_reason="external",
    )
    session.add(row)
    session.flush()
    consultations.open_stage(session, row, task, consultations.askable_experts(session, lineage.id), stage=1)
    rollouts.advance(session, row.id)
    session.flush()
    session.refresh(row)
    return RolloutDetail.model_validate(row)


def build(settings: Settings) -> FastAPI:
    """The app of the api process, and the other route."""
    app = create_app(settings)
    app.include_router(router)
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    built = build(Settings())
    freeze_heap()
    uvicorn.run(built, host="127.0.0.1", port=parser.parse_args().port, log_level="warning")
