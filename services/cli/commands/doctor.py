"""`preceptor doctor`: one line per check."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from services.cli.options import ApiKeyMissing, AsJson, Home, api_of, layout_of
from services.contracts.base import JsonObject
from services.local.care.findings import Finding, Findings, Severity
from services.local.layout import given_database_url

STYLES = {Severity.OK: "green", Severity.WARN: "yellow", Severity.FAIL: "bold red"}


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("doctor")(examine)


def examine(
    home: Home = None,
    url: Annotated[
        str | None, typer.Option("--url", help="Check a remote api instead of the installation on this machine.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check versions, disks, clocks, weights, services and isolation, and advise. Exit status 1 on a `fail`.

    Works with the stack up or down; changes nothing. Without --home and DATABASE_URL, PRECEPTOR_API_URL also selects a
    remote api.
    """
    from services.local.care import doctor

    if url is None and home is None and given_database_url(os.environ) is None:
        url = os.environ.get("PRECEPTOR_API_URL") or None
    checks = doctor.examine(layout_of(home), os.environ) if url is None else _examine_url(home, url)
    console = Console(highlight=False)
    findings: list[Finding] = []
    for finding in checks:
        findings.append(finding)
        if not as_json:
            _tell(console, finding)
    failed = sum(finding.verdict is Severity.FAIL for finding in findings)
    warned = sum(finding.verdict is Severity.WARN for finding in findings)
    if as_json:
        result: JsonObject = {
            "failed": failed,
            "warned": warned,
            "findings": [finding.model_dump(mode="json") for finding in findings],
        }
        console.print_json(data=result)
    else:
        console.print(f"{len(findings)} checks, {failed} failed, {warned} warnings")
    if failed:
        raise typer.Exit(1)


def _examine_url(home: Path | None, url: str) -> Findings:
    from services.local.care import doctor

    try:
        with api_of(home, url) as api:
            return doctor.examine_url(api.url, api.key)
    except ApiKeyMissing:
        return doctor.examine_url(url, "")


def _tell(console: Console, finding: Finding) -> None:
    verdict = f"[{STYLES[finding.verdict]}]{finding.verdict.value:<4}[/]"
    console.print(f"{verdict}  {escape(finding.check)}: {escape(finding.found)}", soft_wrap=True)
    if finding.todo:
        console.print(f"      → {escape(finding.todo)}", soft_wrap=True)
