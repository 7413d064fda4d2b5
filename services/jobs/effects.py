"""Measuring the effects of corrections: how the versions around an update answer the corrected prompt.

One batch at a time, all of one version and with answers as long, on one thread of one worker: it shares the policy
server with the rollouts.
"""

import difflib
import math
from collections.abc import Sequence
from uuid import UUID

import structlog

from services.jobs.app import app, shares
from services.jobs.runtime import Runtime, runtime
from services.policy.client import PolicyRefused, PolicyUnavailable
from services.policy.contract import SamplePrompt, SampleRequest, ScoreItem, ScoreRequest, TokenizeRequest
from services.store.corrections import effects
from services.store.corrections.effects import Measurement, Reading

POLICY_SECONDS = 45.0  # for a batch's scores, and for its answers; both end within the lease
NOT_LOADED = frozenset({404, 409})  # the version is not loaded, or not proved yet; it may be again soon

log = structlog.get_logger(__name__)


@app.task(name="measure")
@shares.bound("measure")
def measure(effect_ids: list[str]) -> None:
    """Measure these corrections under their versions and record the results; safe to deliver twice."""
    held = runtime()
    with held.store.transaction() as session:
        claimed = effects.claim(session, [UUID(i) for i in effect_ids])
    batches: dict[tuple[str, int | None], list[Measurement]] = {}
    for one in claimed:
        batches.setdefault((one.version, one.max_new_tokens), []).append(one)
    for together in batches.values():
        _measure(held, together)


def _measure(held: Runtime, together: Sequence[Measurement]) -> None:
    """Measure these corrections under one version, with answers of the same length at most, at once; if it refuses the
    batch, one by one."""
    try:
        found = read(held, together)
    except PolicyUnavailable as error:
        with held.store.transaction() as session:
            for one in together:
                effects.release(session, one, str(error), counts=False)
        return
    except PolicyRefused as error:
        if len(together) > 1 and error.status_code not in NOT_LOADED:
            for one in together:
                _measure(held, [one])
            return
        _note_refusal(held, together, error)
        return
    with held.store.transaction() as session:
        for one, reading in zip(together, found, strict=True):
            effects.record(session, one, reading)


def _note_refusal(held: Runtime, together: Sequence[Measurement], error: PolicyRefused) -> None:
    ids = [str(one.effect_id) for one in together]
    log.warning("corrections not measured", effects=ids, version=together[0].version, reason=str(error))
    with held.store.transaction() as session:
        for one in together:
            if error.status_code in NOT_LOADED:
                effects.release(session, one, f"version {one.version} is not loaded any more", counts=True)
            else:  # a refused request will be refused again
                effects.give_up(session, one, str(error))


def read(held: Runtime, together: Sequence[Measurement]) -> list[Reading]:
    """The results of one version for these corrections, whose answers may have the same length.

    A prompt shared by several of them is answered once. Errors: PolicyUnavailable, PolicyRefused.
    """
    version, most = together[0].version, held.settings.max_new_tokens
    said = [_say(held, one) for one in together]
    scored = held.policy.score(
        ScoreRequest(
            version=version,
            items=[
                ScoreItem(prompt_token_ids=list(one.prompt_token_ids), response_token_ids=response)
                for one, (response, _, _) in zip(together, said, strict=True)
            ],
        ),
        read_seconds=POLICY_SECONDS,
    )
    prompts = {one.prompt_token_ids: one.effect_id for one in together}
    drawn = held.policy.sample(
        SampleRequest(
            version=version,
            prompts=[SamplePrompt(id=str(name), token_ids=list(ids), seed=0) for ids, name in prompts.items()],
            max_new_tokens=min(most, together[0].max_new_tokens or most),
            temperature=0,
            stop=held.settings.stop,
        ),
        read_seconds=POLICY_SECONDS,
    )
    answers = {
        ids: prompt.samples[0].text.replace("\x00", "\ufffd")  # Postgres cannot hold NUL
        for ids, prompt in zip(prompts, drawn.prompts, strict=True)
    }
    return [
        Reading(
            num_tokens=len(response),
            span_start=span[0],
            span_end=span[1],
            text_logprob=math.fsum(item.logprobs[place] for place in counted),
            span_logprob=math.fsum(item.logprobs[place] for place in counted if span[0] <= place < span[1]),
            answer=answers[one.prompt_token_ids],
        )
        for one, (response, counted, span), item in zip(together, said, scored.items, strict=True)
    ]


def _say(held: Runtime, one: Measurement) -> tuple[list[int], list[int], tuple[int, int]]:
    """The request that scores a correction: the response's tokens, the positions that count, and the changed span."""
    if one.text is None:  # fine as it was: the tokens that the policy chose
        response = list(one.token_ids)
        return response, [place for place, mine in enumerate(one.action_mask) if mine], (0, len(response))
    response = held.policy.tokenize(TokenizeRequest(text=one.text)).token_ids
    return response, list(range(len(response))), find_changed(one.token_ids, response)


def find_changed(answered: Sequence[int], corrected: Sequence[int]) -> tuple[int, int]:
    """The tokens [start, end) of the correction from the first that the policy had not answered to the last.

    If the correction only removes tokens, it is the first token after the removed ones (or, at the end, the one before
    them), where another choice was made. Never empty for a correction that has tokens.
    """
    match = difflib.SequenceMatcher(None, answered, corrected, autojunk=False)
    changes = [(start, end) for tag, _, _, start, end in match.get_opcodes() if tag != "equal"]
    if not changes:
        return 0, len(corrected)
    start, end = changes[0][0], changes[-1][1]
    if start == end:
        start = min(start, len(corrected) - 1)
        end = start + 1
    return start, end
