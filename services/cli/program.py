"""The `preceptor` command: runs the stack, and reaches its api.

Every command that prints a result takes `--json` for the same result as one JSON document.
"""

import json
import re
import sys

import psycopg
import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError
from typer.exceptions import TyperException

from services.cli import backup, doctor, people, resources, stack
from services.errors import InvalidInput, PreceptorError
from services.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Train a language model continuously from every kind of feedback you have, and keep the ledger.",
    epilog="Start with `preceptor demo`, then `preceptor up` and `preceptor tasks import FILE`. "
    "Errors go to stderr in words; with --json also to stdout, as one JSON document "
    "{error, detail, hint}. Exit status: 2 when the request is at fault, 1 otherwise.",
)


stack.add_to(app)
resources.add_to(app)
people.add_to(app)
doctor.add_to(app)
backup.add_to(app)


class SettingsInvalid(InvalidInput):
    """A variable of the environment has a value that cannot be used."""

    title = "Settings not usable"


class UsageWrong(InvalidInput):
    """The command was called with arguments it does not take."""

    title = "Wrong usage"


class DatabaseFailed(PreceptorError):
    """The database cannot be reached, or refused a statement."""

    title = "The database does not do what is asked of it"
    hint = "Does the server run, and is DATABASE_URL right? `preceptor doctor` looks at both."


class MachineRefused(PreceptorError):
    """A file or folder cannot be read or written."""

    title = "This machine does not let it be done"


def run() -> int:
    """Run the command line; the exit status. Errors that are meant for people are printed without a traceback."""
    as_json = "--json" in sys.argv
    try:
        # without --json typer prints wrong usage itself, with its frame and its hint, and ends the process
        status = app(standalone_mode=not as_json)
    except TyperException as error:
        _tell(UsageWrong(error.format_message(), hint="`preceptor COMMAND --help` shows what it takes."), as_json)
        return error.exit_code
    except BrokenPipeError:  # whoever read what is printed is gone: nothing can be told
        raise
    except (ValidationError, SettingsError, OSError, psycopg.Error, SQLAlchemyError) as error:
        told = _describe(error)
        _tell(told, as_json)
        return _status_of(told)
    except PreceptorError as error:
        _tell(error, as_json)
        return _status_of(error)
    return status if isinstance(status, int) else 0


def _status_of(error: PreceptorError) -> int:
    return 2 if 400 <= error.status_code < 500 else 1


def _tell(error: PreceptorError, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"error": error.slug, "detail": error.detail, "hint": error.hint}) + "\n")
    console = Console(stderr=True)
    console.print(f"{error.title}: {error.detail}", style="red", markup=False, highlight=False, soft_wrap=True)
    if error.hint:
        console.print(error.hint, markup=False, highlight=False, soft_wrap=True)


def _describe(
    error: ValidationError | SettingsError | OSError | psycopg.Error | SQLAlchemyError,
) -> PreceptorError:
    """What failed, in words; of settings and requests, which variable or part has which fault."""
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        return MachineRefused(f"{place}{error.strerror or error}")
    if isinstance(error, psycopg.Error | SQLAlchemyError):
        said = str(getattr(error, "orig", None) or error).strip()  # what SQLAlchemy adds is the statement
        return DatabaseFailed(said.splitlines()[0] if said else type(error).__name__)
    if isinstance(error, SettingsError):  # a list that is not JSON; only the message names the field
        named = re.search(r'field "(\w+)"', str(error))
        variable = f"PRECEPTOR_{named[1].upper()}" if named else str(error)
        return SettingsInvalid(f'{variable} must be written as JSON, as in ["a", "b"]')
    of_settings = error.title == Settings.__name__
    faults = []
    for fault in error.errors(include_url=False, include_context=False):
        place = ".".join(map(str, fault["loc"]))
        if of_settings:
            name = str(fault["loc"][0]) if fault["loc"] else ""
            place = name if name.isupper() else f"PRECEPTOR_{name.upper()}"
            faults.append(f"{place}={fault['input']!r}: {fault['msg']}")
        else:
            faults.append(f"{place}: {fault['msg']}" if place else fault["msg"])
    detail = "; ".join(faults)
    return SettingsInvalid(detail) if of_settings else InvalidInput(f"{error.title}: {detail}")
