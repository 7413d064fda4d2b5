"""Findings of an examination: one per check, with the remedy."""

from collections.abc import Iterator
from enum import StrEnum
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict


class Verdict(StrEnum):
    """How a check came out; `warn` works and should be looked at."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(BaseModel):
    """One check: the finding, and the remedy unless it is ok."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    check: str
    verdict: Verdict
    found: str
    todo: str = ""


Findings: TypeAlias = Iterator[Finding]


def ok(check: str, found: str) -> Finding:
    return Finding(check=check, verdict=Verdict.OK, found=found)


def warn(check: str, found: str, todo: str) -> Finding:
    return Finding(check=check, verdict=Verdict.WARN, found=found, todo=todo)


def fail(check: str, found: str, todo: str) -> Finding:
    return Finding(check=check, verdict=Verdict.FAIL, found=found, todo=todo)
