"""Drawing a group of rollouts from the policy."""

import time
from uuid import UUID

import structlog

from services.jobs import dispatch
from services.jobs.app import app, shares
from services.jobs.runtime import runtime
from services.policy.client import PolicyRefused, PolicyUnavailable
from services.policy.contract import SampledPrompt, SamplePrompt, SampleRequest
from services.runtime.tracing import place_of
from services.store.ledger import policies
from services.store.loop import groups, rollouts
from services.store.loop.groups import Draw
from services.store.loop.rollouts import Sample

NOT_READY = frozenset({404, 409})  # the version is not loaded, or not proved yet
BACK_SECONDS = 3.0
BACK_TRIES = 200  # ten minutes: loading and proving wait for the trainer's step, and a trainer may just be starting

log = structlog.get_logger(__name__)


@app.task(name="sample")
@shares.bound("sample")
def sample(group_ids: list[str]) -> None:
    """Draw these groups' rollouts and open their consultations; safe to deliver twice."""
    held = runtime()
    with held.store.transaction() as session:
        draws = groups.claim(session, [UUID(i) for i in group_ids], held.settings.group_lease_seconds)
    for draw in draws:
        _draw(draw)
    dispatch.draws(held.store, held.settings)  # there is space again


def _draw(draw: Draw) -> None:
    held = runtime()
    if draw.policy_version is None:
        _release(draw, "no policy version serves", retry_after=BACK_SECONDS, counts=False)
        return
    began, began_at = time.perf_counter(), time.time_ns()
    try:
        reply = held.policy.sample(_request(draw))
    except PolicyUnavailable as error:
        held.meter.drew("failed", time.perf_counter() - began)
        _release(draw, str(error), retry_after=error.retry_after_seconds or 2, counts=False)
        return
    except PolicyRefused as error:
        held.meter.drew("failed", time.perf_counter() - began)
        if error.status_code in NOT_READY and not draw.names_version:
            reason = f"the policy server does not have {draw.policy_version} yet; the trainer will load it"
            _release(draw, reason, retry_after=BACK_SECONDS, counts=False)
        elif error.status_code in NOT_READY and _comes_back(draw):
            _release(draw, str(error), retry_after=BACK_SECONDS, max_failures=BACK_TRIES)
        else:  # a refused request will be refused again
            _release(draw, str(error), retry_after=1, max_failures=1 if error.status_code in (413, 422) else None)
        return
    seconds, drawn_at = time.perf_counter() - began, time.time_ns()
    drawn: SampledPrompt = reply.prompts[0]
    with held.store.transaction() as session:
        group = groups.finish(session, draw, reply.version)
        if group is None:  # the lease was lost; another worker's samples count
            log.info("draw was late", group_id=str(draw.group_id))
            held.meter.drew("late", seconds)
            return
        stored = rollouts.add_drawn(
            session,
            group,
            tokenizer_hash=reply.tokenizer_hash,
            prompt_token_ids=drawn.prompt_token_ids,
            samples=[
                Sample(
                    token_ids=s.token_ids,
                    logprobs=s.logprobs,
                    text=s.text.replace("\x00", "\ufffd"),  # Postgres cannot hold NUL; the token ids are the truth
                    finish_reason=s.finish_reason.value,
                )
                for s in drawn.samples
            ],
            sampling=draw.sampling.model_dump(mode="json"),
        )
    held.meter.drew("drawn", seconds)
    held.meter.stored(group.purpose, len(drawn.samples), sum(len(s.token_ids) for s in drawn.samples))
    _trace(draw, reply.version, [(one.id, one.num_tokens) for one in stored.rollouts], began_at, drawn_at)
    ids = {"group_id": str(draw.group_id), "task_id": str(draw.task_id)}
    for one in stored.rollouts:
        log.info("rollout drawn", rollout_id=str(one.id), **ids, version=reply.version, purpose=group.purpose)
    dispatch.consultations(stored.opened)


def _trace(draw: Draw, version: str, drawn: list[tuple[UUID, int]], began: int, ended: int) -> None:
    """The group's span, which begins its trace, and one for each rollout."""
    tracing, group = runtime().tracing, place_of(draw.group_id, draw.group_id)
    ids = {"preceptor.group": str(draw.group_id), "preceptor.task": str(draw.task_id), "preceptor.version": version}
    tracing.record("group", group, began=began, ended=ended, attributes=ids)
    for rollout_id, num_tokens in drawn:
        tracing.record(
            "rollout",
            place_of(draw.group_id, rollout_id),
            began=began,
            ended=ended,
            parent=group,
            attributes={"preceptor.rollout": str(rollout_id), "preceptor.tokens": num_tokens},
        )


def _comes_back(draw: Draw) -> bool:
    """Whether the trainer will load the version of this draw again: the policy server was restarted, or dropped it."""
    if draw.policy_version is None:
        return False
    with runtime().store.transaction() as session:
        return policies.can_be_drawn_from(session, draw.lineage_id, draw.policy_version)


def _request(draw: Draw) -> SampleRequest:
    messages = list(draw.messages) if draw.context is None else draw.context.messages
    return SampleRequest(
        version=draw.policy_version,
        prompts=[SamplePrompt(id=str(draw.group_id), messages=messages, n=draw.size, seed=draw.sampling.seed or 0)],
        max_new_tokens=draw.sampling.max_new_tokens,
        temperature=draw.sampling.temperature,
        top_p=draw.sampling.top_p,
        top_k=draw.sampling.top_k,
        stop=draw.sampling.stop,
    )


def _release(
    draw: Draw, reason: str, *, retry_after: float, counts: bool = True, max_failures: int | None = None
) -> None:
    """Release the draw; it is dead after so many failures that count (None: as many as the settings allow)."""
    held = runtime()
    log.warning("draw failed", group_id=str(draw.group_id), task_id=str(draw.task_id), reason=reason)
    with held.store.transaction() as session:
        groups.release(
            session,
            draw,
            reason,
            retry_after=retry_after,
            counts=counts,
            max_attempts=held.settings.max_attempts if max_failures is None else max_failures,
        )
