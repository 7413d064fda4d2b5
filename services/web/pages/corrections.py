"""Correcting answers: the current item of a person, their past decisions, and the effects of those.

Everything works as plain forms; static/correct.js adds the live difference, autosave, the lease's heartbeat and keys.
The requests of that script are in `correction_calls`.
"""

import json
from dataclasses import dataclass, replace
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, TypeAdapter, ValidationError
from sqlalchemy.orm import Session
from starlette.responses import Response

from services.acts import corrections as acts
from services.acts.call import PersonCall
from services.api.deps import AppState, AppStateDep, SettingsDep, StoreDep
from services.contracts.answers import MAX_FEEDBACK_CHARS, MAX_SOLUTION_CHARS, FeedbackSpan
from services.contracts.base import Contract, JsonObject
from services.contracts.corrections import (
    MAX_COMMENT_CHARS,
    CorrectionItem,
    CorrectionOutcome,
    CorrectionSkip,
    CorrectionSubmit,
    Draft,
    DraftSave,
    Opinion,
    QuotedRemark,
)
from services.contracts.persons import Right
from services.policy.client import PolicyClient
from services.policy.text.places import Tokens, read_tokens
from services.runtime.errors import InvalidInput, PreceptorError
from services.store.corrections import claims, corrections, desk, drafts
from services.store.loop import lineages
from services.store.tables.corrections import CorrectionRow
from services.store.tables.loop import RolloutRow
from services.web.forms import build_pages, check_text, form_of
from services.web.lists import RowsDep
from services.web.presenters import differences, hidden, marks, progress
from services.web.presenters.marks import Remark
from services.web.visitors import CallDep, Visitor, VisitorDep, go_to, needs, page

HOLD_SECONDS = 20
"""How long the trainer ignores a submission of this page: time to notice a slip, and no update waits for it."""

_SPANS = TypeAdapter(list[FeedbackSpan])  # as many as a form may hold; how many are kept is checked with words

router = build_pages()


class RemarksUnreadable(InvalidInput):
    """The remarks on parts of the answer cannot be read."""


class WorkForm(Contract):
    """The fields of the page. spans: JSON; quote and remark: one more remark, if there is no script."""

    text: Annotated[str, Field(max_length=MAX_SOLUTION_CHARS)] = ""
    comment: Annotated[str, Field(max_length=MAX_COMMENT_CHARS)] = ""
    spans: Annotated[str, Field(max_length=2_000_000)] = "[]"
    version: Annotated[int, Field(ge=0)] = 0
    quote: Annotated[str, Field(max_length=MAX_FEEDBACK_CHARS)] = ""
    remark: Annotated[str, Field(max_length=MAX_FEEDBACK_CHARS)] = ""
    verdict: Literal["corrected", "fine"] = "corrected"


@dataclass(frozen=True)
class Work:
    """A person's current work: the text, remarks, and the version of the draft it is based on."""

    text: str
    comment: str
    spans: list[FeedbackSpan]
    version: int


@router.get("/correct", dependencies=[needs(Right.CORRECT)])
def show_start(visitor: VisitorDep, store: StoreDep, settings: SettingsDep) -> Response:
    """The start of the queue; the holder of an item is redirected to it."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        held = claims.find_held(session, lineage.id, visitor.id)
        if held is not None:
            return go_to(visitor, f"/correct/{held.id}", notice=visitor.notice)
        recent = desk.history(session, lineage.id, visitor.id, cursor=None, limit=5).items
        return page(
            visitor,
            "corrections/start.html",
            left=desk.count_left(session, lineage.id, visitor.id),
            unfinished=drafts.unfinished(session, lineage.id, visitor.id, limit=10),
            last=desk.last_decided(session, lineage.id, visitor.id),
            recent=recent,
            about=desk.subjects(session, [one.rollout_id for one in recent]),
            say=progress.say,
        )


@router.post("/correct/next", dependencies=[needs(Right.CORRECT)])
def claim_next(visitor: VisitorDep, call: CallDep) -> Response:
    """Claim the next item and go to it."""
    return _go_on(visitor, call, notice=None)


@router.get("/correct/history", dependencies=[needs(Right.CORRECT)])
def show_history(visitor: VisitorDep, store: StoreDep, settings: SettingsDep, paging: RowsDep) -> Response:
    """The visitor's decisions, latest first, with their effects. Errors: BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        found = desk.history(session, lineage.id, visitor.id, cursor=paging.cursor, limit=min(paging.limit, 25))
        about = desk.subjects(session, [one.rollout_id for one in found.items])
    return page(
        visitor,
        "corrections/history.html",
        found=found,
        about=about,
        say=progress.say,
        by_update=progress.by_update,
    )


@router.get("/correct/{correction_id}", dependencies=[needs(Right.CORRECT)])
def show_item(correction_id: UUID, visitor: VisitorDep, app_state: AppStateDep) -> Response:
    """The item if the visitor holds it, else its outcome. Errors: CorrectionNotFound (404)."""
    with app_state.store.reading() as session:
        row = corrections.get(session, correction_id)
        if not drafts.is_held_by(row, visitor.id):
            return _show_outcome(visitor, session, row)
        bench = _read_bench(session, row, visitor)
    return _show_desk(visitor, app_state, bench)


@router.post("/correct/{correction_id}/claim", dependencies=[needs(Right.CORRECT)])
def claim_item(correction_id: UUID, visitor: VisitorDep, call: CallDep) -> Response:
    """Claim this item. Errors: CorrectionNotFound (404), NotYours, NotWaiting, IllegalStatusChange (409)."""
    acts.claim(call, correction_id)
    return go_to(visitor, f"/correct/{correction_id}")


@router.post("/correct/{correction_id}/save", dependencies=[needs(Right.CORRECT)])
def save_item(
    correction_id: UUID,
    visitor: VisitorDep,
    call: CallDep,
    app_state: AppStateDep,
    form: Annotated[WorkForm, form_of(WorkForm)],
) -> Response:
    """Save the draft without a script, with one more remark about a part of the answer if there is one."""
    try:
        work = _read_work(call, app_state.policy, correction_id, form)
        acts.save_draft(call, correction_id, _as_draft(work))
    except PreceptorError as error:
        return _show_again(visitor, app_state, correction_id, form, error)
    return go_to(visitor, f"/correct/{correction_id}", notice="Draft saved.")


@router.post("/correct/{correction_id}/submit", dependencies=[needs(Right.CORRECT)])
def submit_item(
    correction_id: UUID,
    visitor: VisitorDep,
    call: CallDep,
    app_state: AppStateDep,
    form: Annotated[WorkForm, form_of(WorkForm)],
) -> Response:
    """Submit the correction, or that the answer is fine, and continue with the next item.

    If it is refused, the page comes back with the typed text and the reason.
    """
    try:
        work = _read_work(call, app_state.policy, correction_id, form)
        acts.submit(call, correction_id, _decide(work, form.verdict))
    except PreceptorError as error:
        return _show_again(visitor, app_state, correction_id, form, error)
    return _go_on(visitor, call, notice=None)


def _decide(work: Work, verdict: Literal["corrected", "fine"]) -> CorrectionSubmit:
    """The decision as it is sent. Errors: NothingChanged (422)."""
    if verdict == "corrected" and not work.text.strip():
        raise corrections.NothingChanged("the corrected text is empty", hint="Skip the item if there is no answer.")
    return CorrectionSubmit(
        verdict=verdict,
        text=work.text if verdict == "corrected" else None,
        comment=work.comment,
        spans=work.spans,
        hold_seconds=HOLD_SECONDS,
        draft_version=work.version,
    )


@router.post("/correct/{correction_id}/skip", dependencies=[needs(Right.CORRECT)])
def skip_item(
    correction_id: UUID, visitor: VisitorDep, call: CallDep, form: Annotated[CorrectionSkip, form_of(CorrectionSkip)]
) -> Response:
    """Skip the item and continue with the next one. Errors: CorrectionNotFound (404), NotYours (409)."""
    acts.skip(call, correction_id, form)
    return _go_on(visitor, call, notice="Skipped; someone else may take it.")


@router.post("/correct/{correction_id}/release", dependencies=[needs(Right.CORRECT)])
def release_item(correction_id: UUID, visitor: VisitorDep, call: CallDep) -> Response:
    """Stop for now: return the item to the queue and keep the draft.

    Errors: CorrectionNotFound (404), NotYours (409).
    """
    acts.release(call, correction_id)
    return go_to(visitor, "/correct", notice="The item is back in the queue; your text is kept as a draft.")


@router.post("/correct/{correction_id}/undo", dependencies=[needs(Right.CORRECT)])
def undo_item(correction_id: UUID, visitor: VisitorDep, call: CallDep) -> Response:
    """Undo the submission or skip of an item. Errors: CorrectionNotFound (404), NotYours, TooLateToUndo (409)."""
    acts.take_back(call, correction_id)
    return go_to(visitor, f"/correct/{correction_id}", notice="Undone: the answer is yours again, as you left it.")


@router.post("/correct/{correction_id}/discard", dependencies=[needs(Right.CORRECT)])
def discard_item_draft(correction_id: UUID, visitor: VisitorDep, call: CallDep) -> Response:
    """Discard the visitor's draft. Errors: CorrectionNotFound (404)."""
    acts.discard_draft(call, correction_id)
    return go_to(visitor, f"/correct/{correction_id}", notice="The draft is deleted.")


def _go_on(visitor: Visitor, call: PersonCall, *, notice: str | None) -> Response:
    """Redirect to the next item, or to the start if there is none."""
    try:
        path = f"/correct/{acts.claim_next(call).id}"
    except acts.NothingToCorrect:
        path = "/correct"
    return go_to(visitor, path, notice=notice)


def _as_draft(work: Work) -> DraftSave:
    return DraftSave(version=work.version, text=work.text, comment=work.comment, spans=work.spans)


def _read_work(call: PersonCall, policy: PolicyClient, correction_id: UUID, form: WorkForm) -> Work:
    """The work as it was sent, with the remark that quotes words of the answer.

    Errors: RemarksUnreadable, FormNotText, TooManyRemarks, QuoteNotFound, TokensUnknown (422).
    """
    try:
        spans = _SPANS.validate_json(form.spans)
    except ValidationError:
        raise RemarksUnreadable("the remarks on parts of the answer cannot be read") from None
    check_text("a remark on a part of the answer", *(span.text for span in spans))  # JSON spells NUL as an escape
    if form.quote and form.remark.strip():
        remark = QuotedRemark(quote=form.quote, text=form.remark)
        spans = [*spans, acts.place_remark(call, policy, correction_id, remark)]
    drafts.check_number(spans)
    return Work(form.text, form.comment, spans, form.version)


def _show_again(
    visitor: Visitor, app_state: AppState, correction_id: UUID, form: WorkForm, error: PreceptorError
) -> Response:
    """The page as it was sent, with the error and the typed text. Raises errors that have no such page."""
    try:
        spans = _SPANS.validate_json(form.spans)
    except ValidationError:
        spans = []
    work = Work(form.text, form.comment, spans, form.version)
    with app_state.store.reading() as session:
        row = corrections.get(session, correction_id)
        if not drafts.is_held_by(row, visitor.id):
            return _show_outcome(visitor, session, row, work=work, problem=error)
        bench = _read_bench(session, row, visitor)
    theirs = None
    if isinstance(error, drafts.DraftChanged):  # a visitor who saw the other draft may overwrite it
        theirs = bench.item.draft
        work = replace(work, version=0 if theirs is None else theirs.version)
    return _show_desk(visitor, app_state, bench, work=work, form=form, problem=error, theirs=theirs)


@dataclass(frozen=True)
class Bench:
    """The item of the store that the visitor holds."""

    item: CorrectionItem
    token_ids: list[int]
    answer_start: int
    left: desk.Left
    last: CorrectionOutcome | None


def _read_bench(session: Session, row: CorrectionRow, visitor: Visitor) -> Bench:
    rollout = session.get_one(RolloutRow, row.rollout_id)
    return Bench(
        desk.item(session, row, visitor.id, visitor.caller.rights),
        rollout.token_ids,
        rollout.answer_start,
        desk.count_left(session, row.lineage_id, visitor.id),
        desk.last_decided(session, row.lineage_id, visitor.id),
    )


def _show_desk(
    visitor: Visitor,
    app_state: AppState,
    bench: Bench,
    *,
    work: Work | None = None,
    form: WorkForm | None = None,
    problem: PreceptorError | None = None,
    theirs: Draft | None = None,
) -> Response:
    item, draft = bench.item, bench.item.draft
    tokens = read_tokens(app_state.policy, bench.token_ids, item.rollout_text, bench.answer_start)
    if work is None:
        work = (
            Work(item.rollout_text, "", [], 0)
            if draft is None
            else Work(draft.text, draft.comment, draft.spans, draft.version)
        )
    remarks = _list_remarks(item.opinions, tokens)
    return page(
        visitor,
        "corrections/desk.html",
        status_code=200 if problem is None else problem.status_code,
        item=item,
        work=work,
        form=form or WorkForm(),
        own=[(span, _quote(tokens, span)) for span in work.spans],
        spans_json=_SPANS.dump_json(work.spans).decode(),
        segments=marks.split(item.rollout_text, tokens, remarks),
        remarks=remarks,
        exact=hidden.exact,
        hidden=hidden.tell(work.text),
        as_json=_print_json,
        token_ends=None if tokens is None else tokens.ends_in_browsers(),
        changes=differences.compare(item.rollout_text, work.text),
        is_code=item.domain.startswith(("code", "tool")),
        left=bench.left,
        last=bench.last,
        skips=progress.SKIPS,
        problem=problem,
        theirs=theirs,
    )


def _show_outcome(
    visitor: Visitor,
    session: Session,
    row: CorrectionRow,
    *,
    work: Work | None = None,
    problem: PreceptorError | None = None,
) -> Response:
    found = desk.outcome(session, row)
    prompt = desk.prompt(session, row)
    return page(
        visitor,
        "corrections/outcome.html",
        status_code=200 if problem is None else problem.status_code,
        found=found,
        prompt=prompt,
        mine=row.person_id == visitor.id,
        state=progress.say(found),
        updates=progress.by_update(found),
        lessons=desk.lessons_of(session, row),
        changes=None if found.text is None else differences.compare(prompt.rollout_text, found.text),
        draft=drafts.find(session, row.id, visitor.id),
        typed=work,
        chosen_because=desk.explain(row),
        problem=problem,
    )


def _print_json(value: JsonObject) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _list_remarks(opinions: list[Opinion], tokens: Tokens | None) -> list[Remark]:
    said = [(one.expert, span) for one in opinions if one.feedback is not None for span in one.feedback.spans]
    return [
        Remark(number, expert, span.text, span.start, span.end, _quote(tokens, span))
        for number, (expert, span) in enumerate(said, start=1)
    ]


def _quote(tokens: Tokens | None, span: FeedbackSpan) -> str:
    """The words that a remark is about, or their token range if the words are not known."""
    if tokens is None:
        return f"tokens {span.start} to {span.end - 1}"
    start, end = tokens.characters(span.start, span.end)
    return tokens.text[start:end]
