"""Findings of an examination: one per check, with the remedy."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Final, TypeAlias

from pydantic import BaseModel, ConfigDict

ASK_SECONDS: Final = 5.0
"""The longest that a check waits for an answer."""


class Severity(StrEnum):
    """How a check came out; `warn` works and should be looked at."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(BaseModel):
    """One check: the finding, and the remedy unless it is ok."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    check: str
    verdict: Severity
    found: str
    todo: str = ""


Findings: TypeAlias = Iterator[Finding]


def ok(check: str, found: str) -> Finding:
    return Finding(check=check, verdict=Severity.OK, found=found)


def warn(check: str, found: str, todo: str) -> Finding:
    return Finding(check=check, verdict=Severity.WARN, found=found, todo=todo)


def fail(check: str, found: str, todo: str) -> Finding:
    return Finding(check=check, verdict=Severity.FAIL, found=found, todo=todo)
