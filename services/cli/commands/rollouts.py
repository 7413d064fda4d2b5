"""The commands about rollouts, the answers of experts about them, and the lessons made of both."""

import sys
from typing import Annotated
from uuid import UUID

import typer

from services.cli.ids import Id, RolloutId, read_rollout, read_task
from services.cli.options import AsJson, Home, Limit, Url, api_of, show
from services.cli.output.lists import format_rows, list_page
from services.contracts.answers import Answer
from services.contracts.base import JsonObject
from services.contracts.lessons import LessonStatus
from services.contracts.rollouts import Purpose, Rollout, RolloutCreate, RolloutDetail, RolloutStatus

rollouts = typer.Typer(no_args_is_help=True, help="Sampled answers, including those sampled elsewhere.")
answers = typer.Typer(no_args_is_help=True, help="Answers of experts about rollouts: listing and withdrawing them.")
lessons = typer.Typer(no_args_is_help=True, help="Rollouts with the answers that may train them.")


@rollouts.command("list")
def list_rollouts(
    status: Annotated[RolloutStatus | None, typer.Option(help="Filter by status.")] = None,
    purpose: Annotated[Purpose | None, typer.Option(help="Filter by purpose.")] = None,
    domain: Annotated[str | None, typer.Option(help="Only answers to tasks of this domain.")] = None,
    task: Annotated[Id | None, typer.Option(parser=read_task, help="Filter by task.")] = None,
    group: Annotated[UUID | None, typer.Option(help="Filter by group.")] = None,
    home: Home = None,
    url: Url = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List rollouts, newest first.

    One that is set aside has no lesson; one that is `shown` was drawn by the teacher, and counts in no pass rate.
    """
    columns = ("id", "purpose", "status", "score", "shown", "policy_version", "num_tokens", "reason", "text")
    query = {
        "status": status.value if status else None,
        "purpose": purpose.value if purpose else None,
        "domain": domain,
        "task_id": task,
        "group_id": str(group) if group else None,
    }
    list_page("/v1/rollouts", home, url, limit, as_json, columns, query)


@rollouts.command("show")
def show_rollout(rollout_id: RolloutId, home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """Show one rollout with its consultations."""
    with api_of(home, url) as api:
        rollout = api.get(f"/v1/rollouts/{rollout_id.find(api)}", RolloutDetail)
        asked = list(api.pages(f"/v1/rollouts/{rollout.id}/consultations", 200))

    def words() -> None:
        typer.echo(
            f"{rollout.status.value}, {rollout.num_tokens} tokens by {rollout.policy_version}, score {rollout.score}"
        )
        if rollout.shown_after is not None:
            after = rollout.shown_after
            typer.echo(f"drawn by the teacher after: {after.source.value.replace('_', ' ')}, as {after.template.value}")
        typer.echo(rollout.text)
        typer.echo("\n".join(format_rows(asked, ("expert_name", "stage", "status", "attempts", "reason"))))

    result: JsonObject = {"rollout": rollout.model_dump(mode="json"), "consultations": list(asked)}
    show(result, as_json, words)


@rollouts.command("add")
def add_rollout(
    task_id: Annotated[Id, typer.Argument(parser=read_task, help="The task that was answered.")],
    text: Annotated[str, typer.Argument(help="The answer's text; `-` reads it from standard input.")],
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Add an answer sampled elsewhere, as text: it is tokenised once and trains only the local term."""
    answer = sys.stdin.read() if text == "-" else text
    with api_of(home, url) as api:
        body = RolloutCreate(task_id=task_id.find(api), text=answer)
        made = api.post("/v1/rollouts", body, Rollout)
    show(made, as_json, lambda: typer.echo(str(made.id)))


@answers.command("list")
def list_answers(
    rollout_id: Annotated[Id, typer.Argument(parser=read_rollout, help="The rollout they are about.")],
    home: Home = None,
    url: Url = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List answers about a rollout, newest first, including withdrawn ones."""
    columns = ("id", "expert_id", "status", "score", "distribution_kind", "solution", "precedents", "feedback")
    with api_of(home, url) as api:
        path = f"/v1/rollouts/{rollout_id.find(api)}/answers"
    list_page(path, home, url, limit, as_json, columns, whole="id")


@answers.command("withdraw")
def withdraw_answer(answer_id: UUID, home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """Withdraw an answer permanently: no lesson or expert uses it from now on. Applied updates remain."""
    with api_of(home, url) as api:
        gone = api.post(f"/v1/answers/{answer_id}/withdraw", None, Answer)
    show(gone, as_json, lambda: typer.echo(f"answer {gone.id} is {gone.status.value}"))


@lessons.command("list")
def list_lessons(
    status: Annotated[LessonStatus | None, typer.Option(help="Filter by status.")] = None,
    home: Home = None,
    url: Url = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List lessons, newest first. A rollout that is set aside has no lesson."""
    columns = ("id", "rollout_id", "late", "status", "reason", "created_at")
    list_page("/v1/lessons", home, url, limit, as_json, columns, {"status": status.value if status else None})
