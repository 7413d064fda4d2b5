"""The commands about experts."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from services.cli.ids import ExpertId, Id, read_expert
from services.cli.options import AsJson, Home, Limit, Url, api_of, show
from services.cli.output import report
from services.cli.output.lists import format_rows
from services.contracts.base import Page
from services.contracts.calibrations import Calibration
from services.contracts.experts import (
    BY_HAND,
    ConformanceReport,
    Expert,
    ExpertCreate,
    ExpertRegistered,
    ExpertWeight,
    Why,
)

experts = typer.Typer(
    no_args_is_help=True, help="Services that judge, correct or teach. docs/bring-an-expert.md: write one."
)


@experts.command("add")
def add_expert(
    endpoint: Annotated[str, typer.Argument(help="The service's URL; it answers GET {endpoint}/v1/expert.")],
    grant: Annotated[
        list[str] | None, typer.Option(help="A metadata key that the expert may see; repeat for more.")
    ] = None,
    trusted: Annotated[bool, typer.Option("--trusted", help="Activate immediately, without probation.")] = False,
    weight: Annotated[float, typer.Option(min=0, help="Its weight in the loss, relative to other experts.")] = 1.0,
    group_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of groups for which it is consulted.")
    ] = 1.0,
    rollouts_per_group: Annotated[
        int | None, typer.Option(min=1, help="Rollouts per group for which it is consulted.")
    ] = None,
    num_places: Annotated[
        int,
        typer.Option(min=1, max=4096, help="Places of a rollout at which it is asked to go on, if it gives samples."),
    ] = 8,
    num_samples: Annotated[int, typer.Option(min=1, max=64, help="Samples it is asked for at each place.")] = 2,
    secret: Annotated[str | None, typer.Option(help="Signing secret, `whsec_…`.")] = None,
    moved: Annotated[
        Id | None,
        typer.Option(
            parser=read_expert,
            help="The registered expert that has moved to this URL; on probation again, unless --trusted.",
        ),
    ] = None,
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Register an expert by its URL: check its contract, store the report, and put it on probation.

    Adding the same service again repeats the check and sets every option again; an omitted option returns to its
    default. Prints the changes.
    """
    body = ExpertCreate.model_validate(
        {
            "endpoint": endpoint,
            "granted": grant or [],
            "trusted": trusted,
            "weight": weight,
            "group_fraction": group_fraction,
            "rollouts_per_group": rollouts_per_group,
            "num_places": num_places,
            "num_samples": num_samples,
            "signing_secret": secret,
        }
    )
    with api_of(home, url) as api:
        path = "/v1/experts" if moved is None else f"/v1/experts/{moved.find(api)}/move"
        expert = api.post(path, body, ExpertRegistered)

    def words() -> None:
        typer.echo(f"{expert.name} {expert.version} is {expert.status.value}: {expert.id}")
        for line in expert.changed:
            typer.echo(f"changed: {line}")
        for line in expert.warnings:
            typer.secho(f"warning: {line}", fg="yellow")

    show(expert, as_json, words)


@experts.command("list")
def list_experts(home: Home = None, url: Url = None, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List experts, with their share of the loss and what they were measured to teach.

    The share is of the newest updates. Of opinions, it is said how well they tell right answers from wrong ones.
    """
    columns = ("id", "name", "version", "status", "weight", "share", "endpoint", "reason")
    with api_of(home, url) as api:
        items = list(api.pages("/v1/experts", limit))
        opinions = [] if as_json else api.get("/v1/calibrations", Page[Calibration]).items
    found = [Expert.model_validate(item) for item in items]

    def words() -> None:
        shown = [item | {"share": f"{one.share or 0:.0%}"} for item, one in zip(items, found, strict=True)]
        typer.echo("\n".join(format_rows(shown, columns)) or "none")
        for one in found:
            told = [report.calibration_line(opinion) for opinion in opinions if opinion.expert_id == one.id]
            for line in (*one.measured, *told):
                typer.echo(f"{one.name}: {line}")

    show(list(items), as_json, words)


@experts.command("show")
def show_expert(expert_id: ExpertId, home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """Show one expert: how it is consulted, and its conformance report."""
    with api_of(home, url) as api:
        expert = api.get(f"/v1/experts/{expert_id.find(api)}", Expert)
        opinions = [] if as_json else api.get("/v1/calibrations", Page[Calibration]).items

    def words() -> None:
        gives = f"{', '.join(expert.descriptor.kinds)}{' as a verifier' if expert.descriptor.verifier else ''}"
        typer.echo(f"{expert.name}@{expert.version}  {expert.status.value}  {expert.endpoint}")
        typer.echo(f"gives {gives} for {', '.join(expert.descriptor.domains)}")
        typer.echo(f"may see {', '.join(expert.granted) or 'prompts and answers only'}; weight {expert.weight:g}")
        if expert.reason:
            typer.echo(f"reason: {expert.reason}")
        typer.echo(f"share of the newest updates' loss {expert.share or 0:.1%}")
        for line in expert.measured:
            typer.echo(line)
        for one in opinions:
            if one.expert_id == expert.id:
                typer.echo(report.calibration_line(one))
        for check in expert.report.checks:
            typer.echo(
                f"{'ok  ' if check.passed else 'FAIL'}  {check.name}{': ' + check.detail if check.detail else ''}"
            )

    show(expert, as_json, words)


@experts.command("check")
def check_expert(
    endpoint: Annotated[str, typer.Argument(help="The service's URL.")],
    secret: Annotated[str | None, typer.Option(help="Signing secret, `whsec_…`.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run the conformance suite against an expert that you develop, without registering it.

    With a running policy server its samples are in the policy's tokens, as at registration.
    """
    from services.experts.protocol import conformance, sample_tokens
    from services.experts.protocol.client import ExpertClient
    from services.runtime.settings import Settings

    async def run() -> ConformanceReport:
        settings = Settings()
        tokens = await asyncio.to_thread(sample_tokens.read, settings.policy_url, settings.internal_key)
        client = ExpertClient(settings.allowed_expert_networks)
        try:
            return await conformance.check(endpoint, secret, client, tokens)
        finally:
            await client.close()

    found = asyncio.run(run())

    def words() -> None:
        for check in found.checks:
            mark = "ok  " if check.passed else ("FAIL" if check.required else "warn")
            typer.echo(f"{mark}  {check.name}{': ' + check.detail if check.detail else ''}")
        typer.echo("passed" if found.passed else "failed")

    show(found, as_json, words)
    if not found.passed:
        raise typer.Exit(1)


Reason = Annotated[str, typer.Option(help="Why; shown with the expert.")]


@experts.command("activate")
def activate_expert(expert_id: ExpertId, home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """Use an expert's answers for training, or consult it again after a pause."""
    _change_expert(expert_id, "activate", None, home, url, as_json)


@experts.command("pause")
def pause_expert(
    expert_id: ExpertId, reason: Reason = BY_HAND, home: Home = None, url: Url = None, as_json: AsJson = False
) -> None:
    """Stop consulting an expert for a while; its open consultations wait."""
    _change_expert(expert_id, "pause", Why(reason=reason), home, url, as_json)


@experts.command("retire")
def retire_expert(
    expert_id: ExpertId, reason: Reason = BY_HAND, home: Home = None, url: Url = None, as_json: AsJson = False
) -> None:
    """Stop consulting an expert permanently; its open consultations end."""
    _change_expert(expert_id, "retire", Why(reason=reason), home, url, as_json)


@experts.command("requeue")
def requeue_expert(expert_id: ExpertId, home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """Retry an expert's dead consultations; one in quarantine goes back to probation."""
    _change_expert(expert_id, "requeue", None, home, url, as_json)


@experts.command("weight")
def weigh_expert(
    expert_id: ExpertId,
    weight: Annotated[float, typer.Argument(min=0, max=100, help="0: its answers do not train.")],
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Set how much an expert's answers weigh in the loss beside other experts; its other options stay."""
    with api_of(home, url) as api:
        expert = api.put(f"/v1/experts/{expert_id.find(api)}/weight", ExpertWeight(weight=weight), Expert)
    show(expert, as_json, lambda: typer.echo(f"{expert.name} is {expert.status.value}, weight {expert.weight:g}"))


def _change_expert(
    expert_id: Id, action: str, why: Why | None, home: Path | None, url: str | None, as_json: bool
) -> None:
    with api_of(home, url) as api:
        expert = api.post(f"/v1/experts/{expert_id.find(api)}/{action}", why, Expert)
    show(expert, as_json, lambda: typer.echo(f"{expert.name} is {expert.status.value}"))
