"""The `preceptor` command: runs the stack, and reaches its api.

Every command that prints a result takes `--json` for the same result as one JSON document.
"""

import json
import sys

import typer
from rich.console import Console

from services.cli import resources, stack
from services.errors import PreceptorError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Train a language model continuously from every kind of feedback you have, and keep the ledger.",
    epilog="Start with `preceptor demo`, then `preceptor up` and `preceptor tasks import FILE`.",
)


stack.add_to(app)
resources.add_to(app)


def main() -> None:
    """The entry point: errors that are meant for people are printed without a traceback."""
    try:
        app()
    except PreceptorError as error:
        if "--json" in sys.argv:
            sys.stdout.write(json.dumps({"error": error.slug, "detail": error.detail, "hint": error.hint}) + "\n")
        console = Console(stderr=True)
        console.print(f"{error.title}: {error.detail}", style="red", markup=False, highlight=False, soft_wrap=True)
        if error.hint:
            console.print(error.hint, markup=False, highlight=False, soft_wrap=True)
        sys.exit(2 if 400 <= error.status_code < 500 else 1)
