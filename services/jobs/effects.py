"""Measuring what became of corrections: what the versions around an update make of the corrected prompt."""

import difflib
import math
from collections.abc import Sequence
from uuid import UUID

import structlog

from services.jobs.app import app
from services.jobs.runtime import Runtime, runtime
from services.policy.client import PolicyRefused, PolicyUnavailable
from services.policy.contract import SamplePrompt, SampleRequest, ScoreItem, ScoreRequest, TokenizeRequest
from services.store import effects
from services.store.effects import Measurement, Reading

NOT_LOADED = frozenset({404, 409})  # the version is not loaded, or not proved yet; it may be again soon

log = structlog.get_logger(__name__)


@app.task(name="measure")
def measure(effect_ids: list[str]) -> None:
    """Ask the versions about these corrections and write down what each said; safe to deliver twice."""
    held = runtime()
    with held.store.transaction() as session:
        claimed = effects.claim(session, [UUID(i) for i in effect_ids])
    for one in claimed:
        _measure(held, one)


def _measure(held: Runtime, one: Measurement) -> None:
    try:
        found = read(held, one)
    except PolicyUnavailable as error:
        with held.store.transaction() as session:
            effects.release(session, one, str(error), counts=False)
        return
    except PolicyRefused as error:
        log.warning("correction not measured", effect=str(one.effect_id), version=one.version, reason=str(error))
        with held.store.transaction() as session:
            if error.status_code in NOT_LOADED:
                effects.release(session, one, f"version {one.version} is not loaded any more", counts=True)
            else:  # what was refused as it is will be refused again
                effects.give_up(session, one, str(error))
        return
    with held.store.transaction() as session:
        effects.record(session, one, found)


def read(held: Runtime, one: Measurement) -> Reading:
    """What the version makes of the correction. Errors: PolicyUnavailable, PolicyRefused."""
    if one.text is None:  # fine as it was: the tokens the policy chose
        response = list(one.token_ids)
        counted = [place for place, mine in enumerate(one.action_mask) if mine]
        span = (0, len(response))
    else:
        response = held.policy.tokenize(TokenizeRequest(text=one.text)).token_ids
        counted = list(range(len(response)))
        span = find_changed(one.token_ids, response)
    scored = held.policy.score(
        ScoreRequest(
            version=one.version,
            items=[ScoreItem(prompt_token_ids=list(one.prompt_token_ids), response_token_ids=response)],
        )
    )
    logprobs = scored.items[0].logprobs
    drawn = held.policy.sample(
        SampleRequest(
            version=one.version,
            prompts=[SamplePrompt(id=str(one.effect_id), token_ids=list(one.prompt_token_ids), seed=0)],
            max_new_tokens=held.settings.max_new_tokens,
            temperature=0,
            stop=held.settings.stop,
        )
    )
    return Reading(
        num_tokens=len(response),
        span_start=span[0],
        span_end=span[1],
        text_logprob=math.fsum(logprobs[place] for place in counted),
        span_logprob=math.fsum(logprobs[place] for place in counted if span[0] <= place < span[1]),
        answer=drawn.prompts[0].samples[0].text.replace("\x00", "\ufffd"),  # Postgres cannot hold NUL
    )


def find_changed(answered: Sequence[int], corrected: Sequence[int]) -> tuple[int, int]:
    """The tokens [start, end) of the correction from the first that the policy had not answered to the last.

    Where the correction only leaves tokens out, it is the token that now follows what went before (or, at the end, the
    one before it): that is where another choice was made. Never empty for a correction that has tokens.
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
