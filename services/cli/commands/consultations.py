"""Commands of consultations and draws: list them, and requeue dead ones."""

from typing import Annotated

import typer

from services.cli.client import ApiClient
from services.cli.ids import Id, read_consultation, read_draw, read_expert
from services.cli.options import AsJson, Home, Limit, Url, api_of, show
from services.cli.output.lists import list_page
from services.contracts.consultations import ConsultationDetail, ConsultationStatus, Requeued
from services.contracts.draws import Draw
from services.contracts.rollouts import GroupStatus
from services.runtime.errors import InvalidInput

consultations = typer.Typer(no_args_is_help=True, help="Consultations of experts: list them, and requeue dead ones.")
draws = typer.Typer(no_args_is_help=True, help="Prompts that the policy samples: list them, and requeue dead ones.")

All = Annotated[bool, typer.Option("--all", help="Requeue all dead ones, oldest first.")]


@consultations.command("list")
def list_consultations(
    status: Annotated[ConsultationStatus | None, typer.Option(help="Filter by status.")] = None,
    expert: Annotated[Id | None, typer.Option(parser=read_expert, help="Filter by expert.")] = None,
    home: Home = None,
    url: Url = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List consultations, newest first."""
    columns = ("id", "rollout_id", "expert_name", "stage", "status", "attempts", "reason")
    query = {"status": status.value if status else None, "expert_id": expert}
    list_page("/v1/consultations", home, url, limit, as_json, columns, query)


@consultations.command("requeue")
def requeue_consultation(
    consultation_id: Annotated[Id | None, typer.Argument(parser=read_consultation, metavar="[ID]")] = None,
    every: All = False,
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Retry a dead consultation, or with --all every one whose expert is not retired."""
    _check_choice(consultation_id, every)
    with api_of(home, url) as api:
        if consultation_id is None:
            _show_all(_requeue_all(api, "/v1/consultations/requeue"), "consultation", as_json)
            return
        asked = api.post(f"/v1/consultations/{consultation_id.find(api)}/requeue", None, ConsultationDetail)
    show(asked, as_json, lambda: typer.echo(f"{asked.expert_name} is consulted again: {asked.status.value}"))


@draws.command("list")
def list_draws(
    status: Annotated[GroupStatus | None, typer.Option(help="Filter by status.")] = None,
    home: Home = None,
    url: Url = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List draws, newest first."""
    columns = ("id", "task_key", "purpose", "policy_version", "size", "status", "failures", "reason")
    list_page("/v1/draws", home, url, limit, as_json, columns, {"status": status.value if status else None})


@draws.command("requeue")
def requeue_draw(
    draw_id: Annotated[Id | None, typer.Argument(parser=read_draw, metavar="[ID]")] = None,
    every: All = False,
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Retry a dead draw, or with --all every dead draw."""
    _check_choice(draw_id, every)
    with api_of(home, url) as api:
        if draw_id is None:
            _show_all(_requeue_all(api, "/v1/draws/requeue"), "draw", as_json)
            return
        drawn = api.post(f"/v1/draws/{draw_id.find(api)}/requeue", None, Draw)
    show(drawn, as_json, lambda: typer.echo(f"{drawn.task_key} is drawn again: {drawn.status.value}"))


def _check_choice(one: Id | None, every: bool) -> None:
    if (one is None) != every:
        raise InvalidInput("give either one ID or --all")


def _requeue_all(api: ApiClient, path: str) -> int:
    """How many were requeued, over as many calls as it takes."""
    num = 0
    while True:
        done = api.post(path, None, Requeued)
        num += done.num_requeued
        if not done.has_more:
            return num


def _show_all(num: int, noun: str, as_json: bool) -> None:
    show({"num_requeued": num}, as_json, lambda: typer.echo(f"{num} {noun}{' is' if num == 1 else 's are'} requeued"))
