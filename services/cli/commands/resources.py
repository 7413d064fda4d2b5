"""Commands that call the api: one group for each kind of object, and `eval`."""

import asyncio
import sys
import time
from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID

import typer
from rich.console import Console

from services.cli.commands import starter
from services.cli.commands.consultations import consultations, draws
from services.cli.commands.corrections import corrections
from services.cli.commands.measuring import measure_expert, measurements
from services.cli.ids import (
    ExpertId,
    Id,
    RolloutId,
    TaskId,
    read_evaluation,
    read_expert,
    read_rollout,
    read_task,
)
from services.cli.options import AsJson, Home, Limit, Url, api_of, show
from services.cli.output import report
from services.cli.output.lists import format_rows, list_page
from services.cli.output.progress import Progress
from services.contracts.answers import Answer
from services.contracts.base import JsonObject, Page
from services.contracts.calibrations import Calibration
from services.contracts.evaluations import (
    NUM_VALIDATION_TASKS,
    TEMPERATURES,
    Evaluation,
    EvaluationCreate,
    EvaluationDetail,
)
from services.contracts.experts import (
    BY_HAND,
    ConformanceReport,
    Expert,
    ExpertCreate,
    ExpertRegistered,
    ExpertWeight,
    Why,
)
from services.contracts.lessons import LessonStatus
from services.contracts.policies import PolicyVersion
from services.contracts.rollouts import Purpose, Rollout, RolloutCreate, RolloutDetail, RolloutStatus
from services.contracts.tasks import Split, Task
from services.contracts.updates import UpdateDetail

tasks = typer.Typer(
    no_args_is_help=True, help="Prompts to train and measure on. docs/bring-data.md has the file format."
)
rollouts = typer.Typer(no_args_is_help=True, help="Sampled answers, including those sampled elsewhere.")
experts = typer.Typer(
    no_args_is_help=True, help="Services that judge, correct or teach. docs/bring-an-expert.md: write one."
)
answers = typer.Typer(no_args_is_help=True, help="Answers of experts about rollouts: listing and withdrawing them.")
lessons = typer.Typer(no_args_is_help=True, help="Rollouts with the answers that may train them.")
policies = typer.Typer(no_args_is_help=True, help="Published policy versions.")
updates = typer.Typer(no_args_is_help=True, help="The ledger: every optimizer step with the lessons it used.")


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for name, group in (
        ("tasks", tasks),
        ("rollouts", rollouts),
        ("experts", experts),
        ("consultations", consultations),
        ("draws", draws),
        ("answers", answers),
        ("lessons", lessons),
        ("corrections", corrections),
        ("measurements", measurements),
        ("policies", policies),
        ("updates", updates),
    ):
        app.add_typer(group, name=name)
    app.command("eval")(evaluate)
    experts.command("measure")(measure_expert)


@tasks.command("import")
def import_tasks(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|reasoning-gym:NAME", help="A JSONL file, one task per line; or a family, see below."
        ),
    ],
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Import tasks from a file or from reasoning-gym. Importing again changes nothing.

    A bad line rejects the whole file. `reasoning-gym:` lists the families;
    `reasoning-gym:NAME?size=100&heldout=20&seed=0` generates tasks of one family. Add the family's own settings to the
    query (`&max_terms=4`).
    """
    from services.cli.commands import reasoning

    if source == reasoning.PREFIX:
        names = reasoning.list_families()
        show(list(names), as_json, lambda: typer.echo("\n".join(names)))
        return
    made = None if not source.startswith(reasoning.PREFIX) else reasoning.make_tasks(reasoning.parse(source))
    with api_of(home, url) as api:
        done = starter.import_file(api, Path(source)) if made is None else starter.import_tasks(api, made)
    result: JsonObject = {"num_created": done.num_created, "num_existing": done.num_existing}
    show(result, as_json, lambda: typer.echo(f"{done.num_created} new tasks, {done.num_existing} already imported"))
    for note in done.notes:
        typer.echo(note, err=True)


@tasks.command("list")
def list_tasks(
    split: Annotated[Split | None, typer.Option(help="Filter by split.")] = None,
    domain: Annotated[str | None, typer.Option(help="Filter by domain.")] = None,
    family: Annotated[str | None, typer.Option(help="Filter by family.")] = None,
    home: Home = None,
    url: Url = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List tasks, newest first."""
    query = {"split": split.value if split else None, "domain": domain, "family": family}
    list_page("/v1/tasks", home, url, limit, as_json, ("id", "key", "domain", "family", "split"), query)


@tasks.command("show")
def show_task(task_id: TaskId, home: Home = None, url: Url = None, as_json: AsJson = False) -> None:
    """Show one task."""
    with api_of(home, url) as api:
        task = api.get(f"/v1/tasks/{task_id.find(api)}", Task)

    def words() -> None:
        typer.echo(f"{task.key}  {task.domain}  {task.split.value}  family {task.family}")
        for message in task.messages:
            typer.echo(f"--- {message.role}\n{message.content}")
        typer.echo(f"--- metadata: {', '.join(task.metadata) or 'none'}")

    show(task, as_json, words)


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


def evaluate(
    split: Annotated[Literal["heldout", "validation"], typer.Option(help="The split to measure on.")] = "heldout",
    policy: Annotated[str | None, typer.Option(help="A policy version; the serving one by default.")] = None,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks per domain, spread over its families.")] = 15,
    full: Annotated[bool, typer.Option("--full", help="All tasks of the split.")] = False,
    samples: Annotated[int, typer.Option(min=1, max=256, help="Answers per task at each temperature above 0.")] = 8,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            min=0, max=10, help="Draw at this temperature, 0 is greedy; repeat for more. [default: 0, 0.25, 0.5, 1]"
        ),
    ] = None,
    validation_tasks: Annotated[
        int,
        typer.Option(
            min=0, help="Validation tasks per domain to choose the best temperature on; 0: none, and none is chosen."
        ),
    ] = NUM_VALIDATION_TASKS,
    seed: Annotated[int, typer.Option(help="Seed for choosing tasks and sampling.")] = 0,
    against: Annotated[
        Id | None, typer.Option(parser=read_evaluation, help="An earlier evaluation to compare with.")
    ] = None,
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Measure a policy version: pass@1 and pass@k by domain and temperature, with intervals over families.

    Every domain's best temperature is chosen on validation tasks. Compared with an earlier measurement, each version is
    read at its own best temperature.
    """
    from services.cli.commands import demo
    from services.cli.output import measures

    wanted = EvaluationCreate.model_validate(
        {
            "split": split,
            "policy_version": policy,
            "num_tasks": None if full else tasks,
            "num_samples": samples,
            "temperatures": temperature or [*TEMPERATURES],
            "num_validation_tasks": validation_tasks,
            "seed": seed,
        }
    )
    progress = Progress(Console(stderr=True))
    with api_of(home, url) as api:
        before = None if against is None else against.find(api)
        started = api.post("/v1/evaluations", wanted, Evaluation)
        api.wait_with(time.sleep, progress.say)  # it is measured whether we look or not
        found = demo.wait_for_evaluation(api, started.id, progress, lambda: None, f"{split} tasks")
        earlier = None if before is None else api.get(f"/v1/evaluations/{before}", EvaluationDetail)

    def words() -> None:
        typer.echo(f"evaluation {found.id} of {found.policy_version}")
        lines = measures.scores(found) if earlier is None else measures.comparison(earlier, found)
        typer.echo("\n".join(lines))

    show(found, as_json, words)
