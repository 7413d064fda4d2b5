"""The commands about updates and the policy versions made of them."""

import typer

from services.cli.options import AsJson, Home, Limit, Url, api_of, show
from services.cli.output import report
from services.cli.output.lists import list_page
from services.contracts.policies import PolicyVersion
from services.contracts.updates import UpdateDetail

policies = typer.Typer(no_args_is_help=True, help="Published policy versions.")
updates = typer.Typer(no_args_is_help=True, help="The ledger: every optimizer step with the lessons it used.")


@policies.command("list")
def list_policies(home: Home = None, url: Url = None, limit: Limit = 20, as_json: AsJson = False) -> None:
    """List policy versions, newest first."""
    list_page("/v1/policies", home, url, limit, as_json, ("name", "status", "update_number", "served_at", "reason"))


@policies.command("show")
def show_policy(name: str, home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """Show one version with the gate it passed or failed."""
    with api_of(home, url) as api:
        version = api.get(f"/v1/policies/{name}", PolicyVersion)

    def words() -> None:
        typer.echo(f"{version.name} is {version.status.value}, after update {version.update_number}")
        for check in version.gate.checks if version.gate else []:
            mark = "ok  " if check.passed else "FAIL"
            typer.echo(f"{mark}  {check.name}: {check.value:.4g} (bound {check.bound:.4g}) {check.detail}")

    show(version, as_json, words)


@updates.command("list")
def list_updates(home: Home = None, url: Url = None, limit: Limit = 20, as_json: AsJson = False) -> None:
    """List the ledger, newest first."""
    list_page("/v1/updates", home, url, limit, as_json, ("number", "status", "objective", "applied_at", "reason"))


@updates.command("show")
def show_update(number: int, home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """Show one update: its lessons, their terms, and the answers used."""
    with api_of(home, url) as api:
        update = api.get(f"/v1/updates/{number}", UpdateDetail)

    def words() -> None:
        typer.echo(f"update {update.number} is {update.status.value}, objective {update.objective}")
        typer.echo("  ".join(f"{name} {report.number(value)}" for name, value in update.metrics.items()))
        for lesson in update.lessons:
            typer.echo(f"rollout {lesson.rollout_id}, staleness {lesson.staleness}")
            for term in lesson.terms:
                typer.echo(
                    f"  {term.kind.value:<12} share {term.share:.3f}, cost {report.number(term.cost)} nats per token, "
                    f"from {', '.join(term.sources) or 'none'}; answers {', '.join(map(str, term.answers))}"
                )

    show(update, as_json, words)
