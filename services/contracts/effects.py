"""Effects: the policy on a corrected prompt just before and just after an update that used the correction."""

from datetime import datetime
from enum import StrEnum

from services.contracts.base import StatusChanges, View


class EffectStatus(StrEnum):
    """`gone`: the version could not be asked any more; the reason says why."""

    PENDING = "pending"
    MEASURED = "measured"
    GONE = "gone"


EFFECT_CHANGES: StatusChanges[EffectStatus] = {
    EffectStatus.PENDING: frozenset({EffectStatus.MEASURED, EffectStatus.GONE})
}


class EffectSide(StrEnum):
    """Which of the two versions around an update is asked."""

    BEFORE = "before"
    AFTER = "after"


class CorrectionEffect(View):
    """One version's view of a correction. `before`: the last version published without the update; `after`: the first
    published with it.

    text_logprob, span_logprob: natural log of the probability of the whole corrected text (of the answer itself, where
    it was fine) and of its tokens [span_start, span_end) that differ from what the policy had answered; num_tokens: of
    the text. answer: what this version answers now, the likeliest token each time.
    """

    update_number: int
    update_status: str
    side: EffectSide
    version: str
    status: EffectStatus
    reason: str | None
    num_tokens: int | None
    span_start: int | None
    span_end: int | None
    text_logprob: float | None
    span_logprob: float | None
    answer: str | None
    measured_at: datetime | None
