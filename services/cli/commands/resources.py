"""Commands that call the api: one group for each kind of object, and `eval`."""

import typer

from services.cli.commands.consultations import consultations, draws
from services.cli.commands.corrections import corrections
from services.cli.commands.evaluating import evaluate
from services.cli.commands.experts import experts
from services.cli.commands.ledger import policies, updates
from services.cli.commands.measuring import measure_expert, measurements
from services.cli.commands.rollouts import answers, lessons, rollouts
from services.cli.commands.tasks import tasks


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
