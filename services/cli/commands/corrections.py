"""Commands of the human queue: everything the correction page does, without a browser."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from services.cli.client import ApiClient, ApiProblem
from services.cli.ids import Id, read_correction, read_rollout
from services.cli.options import AsJson, Home, Limit, Url, api_of, show
from services.cli.output.lists import list_page
from services.contracts.corrections import (
    Correction,
    CorrectionCreate,
    CorrectionItem,
    CorrectionOutcome,
    CorrectionSkip,
    CorrectionSubmit,
    Draft,
    DraftSave,
    DraftSaved,
    QuotedRemark,
    SkipKind,
)
from services.contracts.effects import CorrectionEffect
from services.runtime.errors import InvalidInput

corrections = typer.Typer(
    no_args_is_help=True, help="The human queue: claim an answer, correct it, see the effect of the correction."
)
ItemId = Annotated[
    Id, typer.Argument(parser=read_correction, metavar="ID", help="The item, as `corrections claim` prints it.")
]


@corrections.command("ask")
def ask_for_correction(
    rollout_id: Annotated[
        Id, typer.Argument(parser=read_rollout, help="The rollout to correct; its task must be in the train split.")
    ],
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Put a rollout at the front of the human queue."""
    with api_of(home, url) as api:
        asked = api.post("/v1/corrections", CorrectionCreate(rollout_id=rollout_id.find(api)), Correction)
    show(asked, as_json, lambda: typer.echo(f"item {asked.id} is {asked.status.value}"))


@corrections.command("claim")
def claim_correction(
    correction_id: Annotated[
        Id | None,
        typer.Argument(parser=read_correction, metavar="[ID]", help="The item; the next one of the queue by default."),
    ] = None,
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Claim an item of the queue; only you can correct it while the lease lasts."""
    with api_of(home, url) as api:
        path = "/v1/corrections/claim" if correction_id is None else f"/v1/corrections/{correction_id.find(api)}/claim"
        item = api.post(path, None, CorrectionItem)

    def words() -> None:
        typer.echo(f"item {item.id}, yours until {item.lease_until}")
        for message in item.messages:
            typer.echo(f"--- {message.role}\n{message.content}")
        typer.echo(f"--- the policy's answer\n{item.rollout_text}")
        typer.echo(f"--- then: preceptor corrections submit {item.id} --file FIXED.txt, or --fine, or skip")

    show(item, as_json, words)


@corrections.command("renew")
def renew_correction(correction_id: ItemId, home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """Extend the lease of a claimed item to 30 minutes from now."""
    with api_of(home, url) as api:
        held = api.post(f"/v1/corrections/{correction_id.find(api)}/renew", None, Correction)
    show(held, as_json, lambda: typer.echo(f"yours until {held.lease_until}"))


@corrections.command("submit")
def submit_correction(
    correction_id: ItemId,
    file: Annotated[Path | None, typer.Option(help="The corrected answer; `-` reads standard input.")] = None,
    draft: Annotated[
        bool,
        typer.Option(
            "--draft", help="Submit your draft: its text, comment and remarks; with --fine, without the text."
        ),
    ] = False,
    fine: Annotated[bool, typer.Option("--fine", help="The answer is fine as it is.")] = False,
    comment: Annotated[str, typer.Option(help="A comment; the teacher may see it.")] = "",
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Submit the corrected answer of a claimed item."""
    if (file is not None) == (fine or draft):
        raise InvalidInput("give either --file with the corrected answer, or --draft, or --fine")
    if draft and comment:
        raise InvalidInput("the draft has a comment of its own; leave --comment out")
    text = None if file is None else _read(file)
    body = CorrectionSubmit(verdict="fine" if text is None else "corrected", text=text, comment=comment)
    with api_of(home, url) as api:
        path = f"/v1/corrections/{correction_id.find(api)}"
        if draft:
            body = _decide(api.get(f"{path}/draft", Draft), fine=fine)
        made = api.post(f"{path}/submit", body, CorrectionOutcome)
    as_fine = (
        " as fine, since only white space differs" if body.verdict == "corrected" and made.verdict == "fine" else ""
    )
    show(
        made,
        as_json,
        lambda: typer.echo(f"{made.status.value}{as_fine}; `preceptor corrections show {made.id}` follows it"),
    )


def _decide(draft: Draft, *, fine: bool) -> CorrectionSubmit:
    return CorrectionSubmit(
        verdict="fine" if fine else "corrected",
        text=None if fine else draft.text,
        comment=draft.comment,
        spans=draft.spans,
        draft_version=draft.version,
    )


def _read(file: Path) -> str:
    return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")


@corrections.command("skip")
def skip_correction(
    correction_id: ItemId,
    reason: Annotated[str, typer.Argument(help="The reason in words; required with --kind other.")] = "",
    kind: Annotated[SkipKind, typer.Option(help="The kind of reason.")] = SkipKind.OTHER,
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Leave a claimed item to someone else, with a reason."""
    if kind is SkipKind.OTHER and not reason.strip():
        raise InvalidInput("give a reason, or choose a --kind")
    body = CorrectionSkip(kind=kind, reason=reason)
    with api_of(home, url) as api:
        made = api.post(f"/v1/corrections/{correction_id.find(api)}/skip", body, CorrectionOutcome)
    show(made, as_json, lambda: typer.echo(made.status.value))


@corrections.command("draft")
def save_draft(
    correction_id: ItemId,
    file: Annotated[
        Path | None, typer.Option(help="File with the new text of the draft; `-` reads standard input.")
    ] = None,
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Print your draft of an item, or save a file as its text; the correction page shows the same draft."""
    with api_of(home, url) as api:
        whole = correction_id.find(api)
        path = f"/v1/corrections/{whole}/draft"
        found = _find_draft(api, path)
        if file is not None:
            text = _read(file)
            body = (
                DraftSave(version=0, text=text)
                if found is None
                else DraftSave(version=found.version, text=text, comment=found.comment, spans=found.spans)
            )
            found = api.put(path, body, DraftSaved)
    if found is None:
        raise InvalidInput(f"you have no draft of correction {whole}; --file saves one")
    draft = found
    show(draft, as_json, lambda: typer.echo(draft.text if file is None else f"saved as version {draft.version}"))


def _find_draft(api: ApiClient, path: str) -> Draft | None:
    try:
        return api.get(path, Draft)
    except ApiProblem as problem:
        if problem.status_code != 404:
            raise
        return None


@corrections.command("remark")
def add_remark(
    correction_id: ItemId,
    quote: Annotated[str, typer.Argument(help="The words of the policy's answer that the remark is about.")],
    text: Annotated[str, typer.Argument(help="The remark.")],
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Add a remark about a part of the answer to your draft; `submit --draft` sends it."""
    body = QuotedRemark(quote=quote, text=text)
    with api_of(home, url) as api:
        kept = api.post(f"/v1/corrections/{correction_id.find(api)}/remarks", body, DraftSaved)
    show(kept, as_json, lambda: typer.echo(f"saved as version {kept.version}, with {len(kept.spans)} remarks"))


@corrections.command("discard")
def discard_draft(correction_id: ItemId, home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """Discard your draft of an item."""
    with api_of(home, url) as api:
        whole = correction_id.find(api)
        api.send("DELETE", f"/v1/corrections/{whole}/draft")
    show({"correction_id": str(whole)}, as_json, lambda: typer.echo("the draft is discarded"))


@corrections.command("undo")
def undo_correction(correction_id: ItemId, home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """Undo a submission or a skip until a trainer uses it; your text becomes the draft again."""
    with api_of(home, url) as api:
        item = api.post(f"/v1/corrections/{correction_id.find(api)}/undo", None, CorrectionItem)
    show(item, as_json, lambda: typer.echo(f"item {item.id} is yours again, until {item.lease_until}"))


@corrections.command("release")
def release_correction(correction_id: ItemId, home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """Return a claimed item to the queue; your draft is kept."""
    with api_of(home, url) as api:
        made = api.post(f"/v1/corrections/{correction_id.find(api)}/release", None, Correction)
    show(made, as_json, lambda: typer.echo(made.status.value))


@corrections.command("leave")
def leave_correction(correction_id: ItemId, home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """End the lease in two minutes if the item has no draft; `renew` keeps it."""
    with api_of(home, url) as api:
        whole = correction_id.find(api)
        api.send("POST", f"/v1/corrections/{whole}/leave")
    show({"correction_id": str(whole)}, as_json, lambda: typer.echo("left"))


@corrections.command("show")
def show_correction(correction_id: ItemId, home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """Show the effect of a correction: the updates that used it, and the policy before and after each."""
    with api_of(home, url) as api:
        found = api.get(f"/v1/corrections/{correction_id.find(api)}", CorrectionOutcome)
    used = ", ".join(map(str, found.update_numbers)) or "none yet"

    def words() -> None:
        typer.echo(f"{found.status.value}, used by updates: {used}")
        if found.waits_for is not None:
            typer.echo(f"not used yet: {found.waits_for}")
        for effect in found.effects:
            typer.echo(f"update {effect.update_number} {effect.side.value} ({effect.version}): {_say(effect)}")

    show(found, as_json, words)


def _say(effect: CorrectionEffect) -> str:
    if effect.text_logprob is None or effect.span_logprob is None:
        return "not measured yet" if effect.reason is None else f"not measured: {effect.reason}"
    return f"logprob of the corrected span {effect.span_logprob:.2f}, of the whole text {effect.text_logprob:.2f} nats"


@corrections.command("list")
def list_corrections(home: Home = None, url: Url = None, limit: Limit = 20, as_json: AsJson = False) -> None:
    """List the human queue, newest first."""
    list_page(
        "/v1/corrections",
        home,
        url,
        limit,
        as_json,
        ("id", "rollout_id", "status", "verdict", "decided_at", "skip_reason"),
    )
