"""Errors of libraries as errors for people. Imported only after an error, as it loads the database driver."""

import re

import psycopg
from pydantic import ValidationError
from pydantic_settings import SettingsError
from sqlalchemy.exc import SQLAlchemyError

from services.runtime.errors import InvalidInput, PreceptorError
from services.runtime.settings import Settings


class SettingsInvalid(InvalidInput):
    """A variable of the environment has a value that cannot be used."""

    title = "Settings not usable"


class DatabaseFailed(PreceptorError):
    """The database cannot be reached, or refused a statement."""

    title = "The database failed"
    hint = "Is the server running, and is DATABASE_URL right? `preceptor doctor` checks both."


class MachineRefused(PreceptorError):
    """A file or folder cannot be read or written."""

    title = "A file or folder is not accessible"


def describe(error: Exception) -> PreceptorError | None:
    """The error in words: for settings and requests, the variable or part at fault. None for a fault of ours."""
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        return MachineRefused(f"{place}{error.strerror or error}")
    if isinstance(error, psycopg.Error | SQLAlchemyError):
        said = str(getattr(error, "orig", None) or error).strip()  # SQLAlchemy appends the statement
        return DatabaseFailed(said.splitlines()[0] if said else type(error).__name__)
    if isinstance(error, SettingsError):  # a list that is not JSON; only the message names the field
        named = re.search(r'field "(\w+)"', str(error))
        variable = f"PRECEPTOR_{named[1].upper()}" if named else str(error)
        return SettingsInvalid(f'{variable} must be written as JSON, as in ["a", "b"]')
    return _describe_invalid(error) if isinstance(error, ValidationError) else None


def _describe_invalid(error: ValidationError) -> PreceptorError:
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
