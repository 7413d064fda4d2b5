"""The `preceptor` command: runs the stack, and calls its api.

Every command that prints a result takes `--json` for the same result as one JSON document.

Commands start fast: their modules import signatures, contracts and the api's client. Anything heavier (a database, an
engine, statistics) is imported inside the function of the command that uses it.
"""

import json
import sys

import typer
from rich.console import Console
from typer.exceptions import TyperException

from services.cli.commands import backup, doctor, people, resources, stack
from services.runtime.errors import InvalidInput, PreceptorError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Train a language model continuously from all the feedback you have, with a ledger of every update.",
    epilog="Start with `preceptor demo`, then `preceptor up` and `preceptor tasks import FILE`. "
    "Errors go to stderr as text; with --json also to stdout, as one JSON document "
    "{error, detail, hint}. Exit status: 2 when the request is at fault, 1 otherwise.",
)


stack.add_to(app)
resources.add_to(app)
people.add_to(app)
doctor.add_to(app)
backup.add_to(app)


class UsageWrong(InvalidInput):
    """The command was called with wrong arguments."""

    title = "Wrong usage"


def run() -> int:
    """Run the command line; the exit status. Errors that are meant for people are printed without a traceback."""
    as_json = "--json" in sys.argv
    try:
        # without --json typer prints wrong usage itself, with its frame and its hint, and ends the process
        status = app(standalone_mode=not as_json)
    except TyperException as error:
        _tell(UsageWrong(error.format_message(), hint="`preceptor COMMAND --help` shows its arguments."), as_json)
        return error.exit_code
    except BrokenPipeError:  # the reader of the output is gone
        raise
    except PreceptorError as error:
        told = error
    except Exception as error:
        from services.cli.output import faults

        known = faults.describe(error)
        if known is None:
            raise
        told = known
    else:
        return status if isinstance(status, int) else 0
    _tell(told, as_json)
    return _status_of(told)


def _status_of(error: PreceptorError) -> int:
    return 2 if 400 <= error.status_code < 500 else 1


def _tell(error: PreceptorError, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"error": error.slug, "detail": error.detail, "hint": error.hint}) + "\n")
    console = Console(stderr=True)
    console.print(f"{error.title}: {error.detail}", style="red", markup=False, highlight=False, soft_wrap=True)
    if error.hint:
        console.print(error.hint, markup=False, highlight=False, soft_wrap=True)
