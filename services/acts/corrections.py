"""What people do with the human queue.

A decision is written in the audit trail. Drafts, renewals and leaving a page are not: they come every few seconds
while somebody works, and the trail is kept for good.
"""

from collections.abc import Callable
from uuid import UUID

from services.acts.call import Act, Call, PersonCall
from services.contracts.answers import FeedbackSpan
from services.contracts.corrections import (
    Correction,
    CorrectionItem,
    CorrectionOutcome,
    CorrectionSkip,
    CorrectionSubmit,
    DraftSave,
    DraftSaved,
    QuotedRemark,
)
from services.jobs import dispatch
from services.policy.client import PolicyClient
from services.policy.text import places
from services.runtime.errors import InvalidInput, NotFound
from services.store.corrections import claims, corrections, desk, drafts, undo
from services.store.loop import consultations
from services.store.tables.corrections import CorrectionRow
from services.store.tables.loop import RolloutRow


class NothingToCorrect(NotFound):
    """The queue holds no item for this person."""

    hint = "Come back later, or ask for one with POST /v1/corrections {rollout_id}."


class QuoteNotFound(InvalidInput):
    """A remark quotes words that are not in the answer."""

    hint = "Copy the words exactly as they stand in the answer."


class TokensUnknown(InvalidInput):
    """The places of the answer's tokens are unknown now, so a remark cannot be put on a part of it."""

    hint = "Put it in the comment on the whole answer, or try again when the policy server is back."


def ask(call: Call, rollout_id: UUID) -> Correction:
    """Put a rollout in the human queue, ahead of the queue's own choice.

    A repeated request gets the item without the words that somebody else wrote: they are kept in one place, from which
    they can be erased. Errors: RolloutNotFound (404), NotCorrectable (422), NoHumanExpert (409).
    """
    with call.begin() as act:
        row = corrections.ask_for(act.session, rollout_id)
        asked = act.keep(corrections.view(row), hide={"text": None, "comment": None, "skip_reason": None})
        act.record("corrections.ask", "correction", row.id)
        opened = consultations.pending_of(act.session, [row.rollout_id])
    dispatch.consultations(opened)
    return asked


def claim_next(call: PersonCall) -> CorrectionItem:
    """Lease the next item to the caller. Errors: NothingToCorrect (404)."""

    def claim(act: Act) -> CorrectionRow:
        row = claims.claim(act.session, act.lineage.id, call.caller.id)
        if row is None:
            raise NothingToCorrect("there is nothing to correct at the moment")
        return row

    return _take(call, "corrections.claim", claim)


def claim(call: PersonCall, correction_id: UUID) -> CorrectionItem:
    """Lease this item to the caller.

    Errors: CorrectionNotFound (404), NotYours, NotWaiting, IllegalStatusChange (409).
    """
    return _take(call, "corrections.claim", lambda act: claims.claim_one(act.session, correction_id, call.caller.id))


def take_back(call: PersonCall, correction_id: UUID) -> CorrectionItem:
    """Take back a decision of the caller's, submitted or skipped.

    Errors: CorrectionNotFound (404), NotYours, TooLateToUndo, NotWaiting (409).
    """
    return _take(call, "corrections.undo", lambda act: undo.take_back(act.session, correction_id, call.caller.id))


def _take(call: PersonCall, action: str, take: Callable[[Act], CorrectionRow]) -> CorrectionItem:
    with call.begin() as act:
        row = take(act)
        act.record(action, "correction", row.id)
        return act.keep(desk.item(act.session, row, call.caller.id, call.caller.rights))


def renew(call: PersonCall, correction_id: UUID) -> Correction:
    """Hold a claimed item for another 30 minutes. Errors: CorrectionNotFound (404), NotYours (409)."""
    with call.begin() as act:
        return act.keep(corrections.view(claims.renew(act.session, correction_id, call.caller.id)))


def leave(call: PersonCall, correction_id: UUID) -> None:
    """Let the lease of an item without a draft end in two minutes; whoever comes back by then renews it.

    Errors: CorrectionNotFound (404).
    """
    with call.begin() as act:
        claims.leave(act.session, corrections.get(act.session, correction_id).id, call.caller.id)
        act.keep(None)


def release(call: PersonCall, correction_id: UUID) -> Correction:
    """Give a claimed item back to the queue; a draft is kept. Errors: CorrectionNotFound (404), NotYours (409)."""
    with call.begin() as act:
        act.record("corrections.release", "correction", correction_id)
        return act.keep(corrections.view(claims.release(act.session, correction_id, call.caller.id)))


def save_draft(call: PersonCall, correction_id: UUID, draft: DraftSave) -> DraftSaved:
    """Keep the caller's unfinished work. Errors: CorrectionNotFound (404), DraftChanged, DraftNotTaken (409)."""
    with call.begin() as act:
        return act.keep(drafts.save(act.session, corrections.lock(act.session, correction_id), call.caller.id, draft))


def discard_draft(call: PersonCall, correction_id: UUID) -> None:
    """Throw the caller's draft away, if there is one. Errors: CorrectionNotFound (404)."""
    with call.begin() as act:
        drafts.discard(act.session, corrections.get(act.session, correction_id).id, call.caller.id)
        act.keep(None)


def place_remark(call: Call, policy: PolicyClient, correction_id: UUID, remark: QuotedRemark) -> FeedbackSpan:
    """The remark on the tokens of the words that it quotes.

    Errors: CorrectionNotFound (404), QuoteNotFound, TokensUnknown (422).
    """
    with call.store.reading() as session:
        rollout = session.get_one(RolloutRow, corrections.get(session, correction_id).rollout_id)
    tokens = places.read_tokens(policy, rollout.token_ids, rollout.text, rollout.answer_start)
    if tokens is None:
        raise TokensUnknown("the remark could not be put on a part of the answer")
    place = tokens.find(remark.quote)
    if place is None:
        raise QuoteNotFound(f"the answer does not contain {remark.quote[:80]!r}")
    return FeedbackSpan(start=place[0], end=place[1], text=remark.text)


def add_remark(call: PersonCall, policy: PolicyClient, correction_id: UUID, remark: QuotedRemark) -> DraftSaved:
    """Add a remark to the caller's draft; without one, a draft begins with the answer as it is.

    Errors: CorrectionNotFound (404), DraftNotTaken (409), QuoteNotFound, TokensUnknown, TooManyRemarks (422).
    """
    call.check()
    placed = place_remark(call, policy, correction_id, remark)
    with call.begin() as act:
        row = corrections.lock(act.session, correction_id)
        return act.keep(drafts.add_remark(act.session, row, call.caller.id, placed))


def submit(call: PersonCall, correction_id: UUID, decided: CorrectionSubmit) -> CorrectionOutcome:
    """Decide a claimed item: the answer as it should be, or that it is fine.

    Errors: CorrectionNotFound (404), NotYours, NotWaiting, IllegalStatusChange, DraftChanged (409),
    NothingChanged (422).
    """
    with call.begin() as act:
        drafts.check_seen(act.session, corrections.lock(act.session, correction_id), call.caller.id, decided)
        row = corrections.submit(act.session, correction_id, call.caller.id, decided)
        outcome = act.keep(desk.outcome(act.session, row))
        act.record("corrections.submit", "correction", row.id, {"verdict": row.verdict})
        opened = consultations.pending_of(act.session, [row.rollout_id])
    dispatch.consultations(opened)
    dispatch.lessons()
    return outcome


def skip(call: PersonCall, correction_id: UUID, why: CorrectionSkip) -> CorrectionOutcome:
    """Leave a claimed item to someone else. Errors: CorrectionNotFound (404), NotYours, IllegalStatusChange (409)."""
    with call.begin() as act:
        row = corrections.skip(act.session, correction_id, call.caller.id, why)
        act.record("corrections.skip", "correction", row.id, {"kind": why.kind.value})
        return act.keep(desk.outcome(act.session, row))
