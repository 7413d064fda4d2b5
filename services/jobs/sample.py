"""Drawing a group of rollouts from the policy.

A group with a context is drawn in two parts under one lease and stored in one transaction: its last rollouts by the
teacher, which is the policy after the context, the others by the policy after the plain prompt. Where the policy cannot
read the context, it draws the whole group after the plain prompt, and the group keeps the reason.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog

from services.contracts.rollouts import Sampling
from services.contracts.tasks import Message
from services.jobs import dispatch
from services.jobs.app import app, shares
from services.jobs.runtime import runtime
from services.policy.client import PolicyRefused, PolicyUnavailable
from services.policy.contract import SamplePrompt, SampleRequest, SampleResponse
from services.runtime.tracing import place_of
from services.store.ledger import policies
from services.store.loop import contexts, groups, rollouts
from services.store.loop.groups import Draw
from services.store.loop.rollouts import Sample

UNREADABLE = frozenset({413, 422})  # too long, or refused by the chat template: it will be refused again
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
        drawn = _sample(draw, draw.policy_version)
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
            _release(draw, str(error), retry_after=1, max_failures=1 if error.status_code in UNREADABLE else None)
        return
    seconds, drawn_at = time.perf_counter() - began, time.time_ns()
    with held.store.transaction() as session:
        group = groups.finish(session, draw, drawn.version, num_shown=drawn.num_shown, reason=drawn.reason)
        if group is None:  # the lease was lost; another worker's samples count
            log.info("draw was late", group_id=str(draw.group_id))
            held.meter.drew("late", seconds)
            return
        stored = rollouts.add_drawn(
            session,
            group,
            tokenizer_hash=drawn.tokenizer_hash,
            prompt_token_ids=drawn.prompt_token_ids,
            samples=drawn.samples,
            sampling=draw.sampling.model_dump(mode="json"),
            shown_sampling=_sampling_shown(draw).model_dump(mode="json"),
        )
    held.meter.drew("drawn", seconds)
    held.meter.stored(group.purpose, len(drawn.samples), sum(len(s.token_ids) for s in drawn.samples))
    _trace(draw, drawn.version, [(one.id, one.num_tokens) for one in stored.rollouts], began_at, drawn_at)
    ids = {"group_id": str(draw.group_id), "task_id": str(draw.task_id)}
    for one in stored.rollouts:
        log.info("rollout drawn", rollout_id=str(one.id), **ids, version=drawn.version, purpose=group.purpose)
    dispatch.consultations(stored.opened)


@dataclass(frozen=True)
class _Drawn:
    """A group's samples, the teacher's last. reason: why the teacher drew none of those it was to draw."""

    version: str
    tokenizer_hash: str
    prompt_token_ids: list[int]
    samples: list[Sample]
    num_shown: int
    reason: str | None


def _sample(draw: Draw, version: str) -> _Drawn:
    """Draw both parts. Errors: PolicyUnavailable, PolicyRefused."""
    shown, reason = _sample_shown(draw, version)
    samples = [] if shown is None else _read(shown)
    num_own = draw.size - len(samples)
    if shown is not None and num_own == 0:
        return _Drawn(shown.version, shown.tokenizer_hash, shown.prompts[0].prompt_token_ids, samples, draw.size, None)
    own = runtime().policy.sample(_request(draw, version, draw.messages, num_own, draw.sampling))
    return _Drawn(
        own.version,
        own.tokenizer_hash,
        own.prompts[0].prompt_token_ids,
        [*_read(own), *samples],
        len(samples),
        reason,
    )


def _sample_shown(draw: Draw, version: str) -> tuple[SampleResponse | None, str | None]:
    """The teacher's part, or the reason why there is none. A group that has no other part fails with its context."""
    if draw.context is None or not draw.num_shown:
        return None, None
    try:
        if not draw.context.messages:
            raise PolicyRefused(422, contexts.WITHDRAWN)
        request = _request(draw, version, draw.context.messages, draw.num_shown, _sampling_shown(draw))
        return runtime().policy.sample(request), None
    except PolicyRefused as error:
        if error.status_code not in UNREADABLE or draw.num_shown == draw.size:
            raise
        return None, f"the teacher drew none: {error.detail}"


def _sampling_shown(draw: Draw) -> Sampling:
    """How the teacher draws: at the temperature of its context, and with a seed of its own beside the policy's."""
    sampling = draw.sampling
    if draw.context is not None and draw.context.temperature is not None:
        sampling = sampling.model_copy(update={"temperature": draw.context.temperature})
    if draw.num_shown == draw.size:
        return sampling
    digest = hashlib.sha256(f"{sampling.seed or 0}:shown".encode()).digest()
    return sampling.model_copy(update={"seed": int.from_bytes(digest[:4]) >> 1})


def _read(reply: SampleResponse) -> list[Sample]:
    return [
        Sample(
            token_ids=s.token_ids,
            logprobs=s.logprobs,
            text=s.text.replace("\x00", "\ufffd"),  # Postgres cannot hold NUL; the token ids are the truth
            finish_reason=s.finish_reason.value,
        )
        for s in reply.prompts[0].samples
    ]


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


def _request(draw: Draw, version: str, messages: Sequence[Message], num: int, sampling: Sampling) -> SampleRequest:
    return SampleRequest(
        version=version,
        prompts=[SamplePrompt(id=str(draw.group_id), messages=list(messages), n=num, seed=sampling.seed or 0)],
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        stop=sampling.stop,
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
