"""`preceptor eval`."""

import time
from typing import Annotated, Literal

import typer
from rich.console import Console

from services.cli.ids import Id, read_evaluation
from services.cli.options import AsJson, Home, Url, api_of, show
from services.cli.output.progress import Progress
from services.contracts.evaluations import (
    NUM_VALIDATION_TASKS,
    TEMPERATURES,
    Evaluation,
    EvaluationCreate,
    EvaluationDetail,
)


def evaluate(
    split: Annotated[Literal["heldout", "validation"], typer.Option(help="The split to measure on.")] = "heldout",
    policy: Annotated[str | None, typer.Option(help="A policy version; the serving one by default.")] = None,
    domain: Annotated[
        list[str] | None, typer.Option(help="Measure on tasks of this domain; repeat for more. [default: all]")
    ] = None,
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
            "domains": domain or None,
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
