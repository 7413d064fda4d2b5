"""The effect of a correction, in words and numbers that people can compare."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from services.contracts.corrections import CorrectionOutcome, CorrectionStatus, SkipKind
from services.contracts.effects import CorrectionEffect, EffectSide, EffectStatus

SKIPS: Final[Mapping[SkipKind, str]] = {
    SkipKind.UNCLEAR: "The task is unclear",
    SkipKind.NOT_MY_FIELD: "It is not my field",
    SkipKind.CANNOT_CHECK: "I cannot check it here",
    SkipKind.TOO_LONG: "It is too long for me now",
    SkipKind.BROKEN: "The task or the answer is broken",
    SkipKind.HARMFUL: "I do not want to read this",
    SkipKind.OTHER: "Something else",
}
"""The reasons people can choose."""


@dataclass(frozen=True)
class Side:
    """One version's view. token_probability: of a token of the corrected part, the geometric mean."""

    effect: CorrectionEffect
    token_probability: float | None
    span_bits: float | None
    """The surprise of the whole corrected part, in bits: the number of coin flips it is worth."""


@dataclass(frozen=True)
class Use:
    """An update that used the correction, with the versions around it; None where no measurement is planned yet."""

    number: int
    before: Side | None
    after: Side | None
    was_undone: bool


def by_update(found: CorrectionOutcome) -> list[Use]:
    """The updates that used the correction, in order."""
    sides = {(effect.update_number, effect.side): _see(effect) for effect in found.effects}
    undone = {effect.update_number for effect in found.effects if effect.update_status == "undone"}
    numbers = sorted({*found.update_numbers, *(effect.update_number for effect in found.effects)})
    return [
        Use(number, sides.get((number, EffectSide.BEFORE)), sides.get((number, EffectSide.AFTER)), number in undone)
        for number in numbers
    ]


def _see(effect: CorrectionEffect) -> Side:
    if effect.span_logprob is None or effect.span_start is None or effect.span_end is None:
        return Side(effect, None, None)
    tokens = max(1, effect.span_end - effect.span_start)
    return Side(effect, math.exp(effect.span_logprob / tokens), -effect.span_logprob / math.log(2))


def say(found: CorrectionOutcome) -> str:
    """The state of a correction in a sentence; it states only what is recorded."""
    if found.status is CorrectionStatus.SKIPPED:
        label = SKIPS[found.skip_kind or SkipKind.OTHER]
        why = f"{label}: {found.skip_reason}" if found.skip_reason else label
        return f"Skipped. {why}."
    if found.status is CorrectionStatus.WITHDRAWN:
        return "Withdrawn: it is no longer needed."
    if found.status is not CorrectionStatus.SUBMITTED:
        return "In the queue." if found.status is CorrectionStatus.OPEN else "Someone is working on it."
    if not found.update_numbers:
        if found.held_until is not None and found.held_until > datetime.now(UTC):
            return "Submitted. The trainer waits a moment so that you can undo it."
        return "Submitted. No update has used it yet."
    numbers = ", ".join(map(str, found.update_numbers))
    used = f"Used by update{'s' if len(found.update_numbers) > 1 else ''} {numbers}."
    first = next((use for use in by_update(found) if use.after is not None), None)
    if first is None:
        return f"{used} Its effect is measured when a version with it is published."
    states = {side.effect.status for side in (first.before, first.after) if side is not None}
    if EffectStatus.PENDING in states:
        return f"{used} Its effect is being measured."
    if EffectStatus.GONE in states:
        return f"{used} Its effect could not be measured on both sides."
    return used
