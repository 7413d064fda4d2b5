"""Commands that start and stop the stack on this machine: up, down, status, demo, init."""

import os
import time
from collections.abc import Iterator
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from services.cli.client import ApiUnreachable
from services.cli.options import AsJson, AsJsonLines, Home, Url, api_of, layout_of, show
from services.cli.output import report
from services.contracts.status import LoopState, LoopSwitch, Status
from services.local.layout import Layout, write_private
from services.local.supervise.run_state import Presence, Stage, find_presence, read_running, stop_running
from services.runtime.errors import InvalidInput
from services.runtime.secret_files import find_secret

Model = Annotated[
    str | None,
    typer.Option(
        help="A folder or Hugging Face id. [PRECEPTOR_MODEL, else the starter model SmolLM2-135M-Instruct]",
        show_default=False,
    ),
]
Threads = Annotated[int, typer.Option(min=1, help="Threads of the policy's engine.")]
DEFAULT_THREADS = max(1, min(4, os.cpu_count() or 1))


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("demo")(run_demo)
    app.command("up")(up)
    app.command("down")(down)
    app.command("status")(status)
    app.command("init")(init)
    app.command("key")(key)
    app.command("loop")(switch_loop)


def run_demo(
    home: Home = None,
    model: Model = None,
    against: Annotated[
        str | None,
        typer.Option(help="Use the running installation at this api URL instead of starting one.", show_default=False),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="An operator's API key for that installation. [PRECEPTOR_API_KEY]", show_default=False),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=1, help="Time limit after start-up; training gets at least a third.")
    ] = 15.0,
    updates: Annotated[int, typer.Option(min=1, help="Number of updates, if the time allows.")] = 192,
    tasks: Annotated[int, typer.Option(min=1, help="Held-out tasks per domain to measure on.")] = 15,
    samples: Annotated[int, typer.Option(min=1, help="Answers per task at each temperature above 0.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed for choosing and ordering tasks, and for sampling.")] = 0,
    threads: Threads = DEFAULT_THREADS,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Measure on all tasks at every temperature, and all that could teach, without a time limit."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the main job once: import the starter tasks, measure, train, correct a few answers, measure again, stop.

    Writes an HTML report and the result as JSON to `reports` in the data folder. `preceptor up` continues from there.
    Of tasks that are hardly ever passed the teacher draws half of each group, and an update learns from one group of
    8, or four of 2, unless PRECEPTOR_ROLL_IN and PRECEPTOR_TRAINER_GROUPS_PER_UPDATE say otherwise. With --against the
    running installation does the work, with its own model, settings and seed, and keeps running.
    """
    from services.cli.commands import demo, running

    plan = (
        demo.plan_in_full(updates, samples, seed)
        if full
        else demo.DemoPlan(minutes=minutes, num_updates=updates, num_eval_tasks=tasks, num_samples=samples, seed=seed)
    )
    os.environ["PRECEPTOR_SEED"] = os.environ["PRECEPTOR_TRAINER_SEED"] = str(seed)
    demo.settle()
    if against is None:
        running.demonstrate(home, model, threads, plan, as_json)
        return
    if model is not None:
        raise InvalidInput("--model cannot be combined with --against: the installation already has a model")
    running.demonstrate_on(layout_of(home), against, key, plan, as_json)


def up(
    home: Home = None,
    model: Model = None,
    threads: Threads = DEFAULT_THREADS,
    paused: Annotated[
        bool, typer.Option("--paused", help="Start with the loop paused: no sampling and no training.")
    ] = False,
    as_json: AsJsonLines = False,
) -> None:
    """Start the stack on the data folder and train on incoming tasks until Ctrl-C or `preceptor down`."""
    from services.cli.commands import running

    running.run(home, model, threads, paused=paused, as_json=as_json)


class Switch(StrEnum):
    """Whether a part of the loop runs."""

    ON = "on"
    OFF = "off"


class Part(StrEnum):
    """A part of the loop with a switch of its own."""

    SAMPLING = "sampling"
    TRAINING = "training"


def switch_loop(
    to: Annotated[
        Switch | None,
        typer.Argument(help="on: sample and train; off: pause after the current step.", show_default=False),
    ] = None,
    only: Annotated[Part | None, typer.Option(help="Switch only this part.", show_default=False)] = None,
    until: Annotated[
        int | None, typer.Option(min=1, help="Stop after the update with this number.", show_default=False)
    ] = None,
    no_end: Annotated[bool, typer.Option("--no-end", help="Remove the stop limit.")] = False,
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Turn the loop of a running stack on, or pause it; work in progress is kept.

    `on` without --until and --only also removes the stop limit.
    """
    if to is None and until is None and not no_end:
        raise InvalidInput("give on or off, or set the stop limit with --until or --no-end")
    if until is not None and no_end:
        raise InvalidInput("give either --until or --no-end")
    wanted = LoopSwitch(
        sampling=None if to is None or only is Part.TRAINING else to is Switch.ON,
        training=None if to is None or only is Part.SAMPLING else to is Switch.ON,
        max_updates=until,
        no_end=no_end or (to is Switch.ON and until is None and only is None),
    )
    with api_of(home, url) as api:
        state = api.post("/v1/loop", wanted, LoopState)
    show(state, as_json, lambda: typer.echo(_describe(state)))


def _describe(state: LoopState) -> str:
    sampling, training = (("off", "on")[is_on] for is_on in (state.sampling, state.training))
    parts = f"the loop is {sampling}" if sampling == training else f"sampling is {sampling}, training is {training}"
    return parts if state.max_updates is None else f"{parts}; it stops after update {state.max_updates}"


def down(home: Home = None, as_json: AsJson = False) -> None:
    """Stop the stack of `up` or `demo` on the data folder; returns when all processes have ended."""
    outcome = stop_running(layout_of(home)).value
    show({"outcome": outcome}, as_json, lambda: typer.echo(outcome))


def status(
    home: Home = None,
    url: Url = None,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat every two seconds until Ctrl-C.")] = False,
) -> None:
    """Show the state of the loop: progress, processes, and why it waits."""
    while True:
        _show_status(home, url, as_json)
        if not watch:
            return
        time.sleep(2)


def _show_status(home: Path | None, url: str | None, as_json: bool) -> None:
    layout = layout_of(home)
    here = url is None and "PRECEPTOR_API_URL" not in os.environ
    state = Presence.RUNNING if not here else find_presence(layout)
    if state is not Presence.RUNNING:
        show({"running": False, "state": state.value}, as_json, lambda: typer.echo(WORDS_OF_PRESENCE[state]))
        return
    try:
        with api_of(home, url) as api:
            current = api.get("/v1/status", Status)
    except ApiUnreachable:
        state = find_presence(layout)
        if not here or state is Presence.RUNNING:
            raise
        show({"running": False, "state": state.value}, as_json, lambda: typer.echo(WORDS_OF_PRESENCE[state]))
        return
    lines = [*report.status_lines(current), *(_lines_of_sick(layout) if here else ())]
    show(current, as_json, lambda: typer.echo("\n".join(lines)))


def _lines_of_sick(layout: Layout) -> Iterator[str]:
    """One line for each process of the data folder whose health check has failed for a while."""
    state = read_running(layout)
    for process in () if state is None else state.processes:
        if process.stage is Stage.SICK:
            yield f"{process.name}: its health check fails; see {process.log}"


WORDS_OF_PRESENCE = {
    Presence.NOTHING: "no stack runs on this data folder; `preceptor up` starts one",
    Presence.STARTING: "the stack on this data folder is starting",
    Presence.STOPPING: "the stack on this data folder is stopping",
}


def init(
    database: Annotated[bool, typer.Option("--database", help="Prepare only the schema and the owner.")] = False,
    experts: Annotated[
        bool, typer.Option("--experts", help="Also register the built-in experts, through the api.")
    ] = False,
    keep_key: Annotated[
        Path | None,
        typer.Option(
            help="Write the owner's key to this file instead of printing it; makes a new key if the file is missing.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prepare a database and policy that run elsewhere: schema, owner, lineage. Running it again changes nothing.

    DATABASE_URL and PRECEPTOR_POLICY_URL name them. Prints the owner's API key if it makes one; it is shown only once.
    """

    from services import prepare
    from services.runtime.settings import Settings

    settings = Settings()
    keep = _keep_nowhere if keep_key is None else partial(write_private, keep_key)
    is_lost = keep_key is not None and not keep_key.exists()
    new_key = prepare.prepare_database(settings, keep, is_lost=is_lost)
    shown = new_key if keep_key is None else None
    words = "the database is ready" if shown is None else f"the owner's API key, shown only once: {shown}"
    if new_key is not None and keep_key is not None:
        words = f"the database is ready; the owner's API key is in {keep_key}"
    # before calling the policy, which may be unavailable: the key must not be lost
    show({"new_owner_key": shown}, as_json, lambda: typer.echo(words))
    if database:
        return
    prepare.prepare_lineage(settings)
    if experts:
        names = [expert.name for expert in prepare.register_own_experts(settings, new_key or _find_key())]
        if not as_json:
            typer.echo(f"experts registered: {', '.join(names)}")


def _keep_nowhere(key: str) -> None:
    """The key is only printed."""


def _find_key() -> str:
    """The key of this installation's owner. Errors: OwnerKeyMissing."""

    from services.local.supervise.stack import OwnerKeyMissing

    key = find_secret("PRECEPTOR_API_KEY")
    if not key:
        raise OwnerKeyMissing("the database already has an owner, whose API key is not known here")
    return key


def key(home: Home = None, url: Url = None) -> None:
    """Print the API key that commands use here: the owner's, on the machine that made the installation."""
    with api_of(home, url) as api:
        typer.echo(api.key)
