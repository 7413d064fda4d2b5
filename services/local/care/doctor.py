"""The checks of `preceptor doctor`: problems that could keep this installation from working, each with its remedy.

Changes nothing. Every check answers in words within seconds; one that cannot be made says why. With the stack down
the machine and the files are checked; with it up the services too. The checks are in `check_machine`, `check_stores`
and `check_services`.
"""

from collections.abc import Callable, Mapping
from typing import ParamSpec

from services.local.care import check_machine, check_services, check_stores
from services.local.care.findings import Finding, Findings, Severity, fail, warn
from services.local.installation import find
from services.local.layout import ROOT, Layout
from services.local.processes.process import LocalError

P = ParamSpec("P")


def examine(layout: Layout, environ: Mapping[str, str]) -> Findings:
    """Every check of an installation on this machine, as it is made. Errors: pydantic's of settings that are wrong."""
    yield from _guard("python", check_machine.check_python)
    yield from _guard("libraries", check_machine.check_libraries, ROOT / "constraints.txt")
    yield from _guard("memory", check_machine.check_memory)
    try:
        installation = find(layout, environ)
    except LocalError as error:
        yield fail("data folder", error.detail, error.hint)
        return
    yield from _guard("data folder", check_machine.check_disks, installation)
    yield from _guard("processes", check_machine.check_processes, installation)
    can_be_read = True
    for finding in _guard("database", check_stores.check_database, installation):
        if finding.check in ("database", "migration") and finding.verdict is Severity.FAIL:
            can_be_read = False
        yield finding
    yield from _guard("broker", check_stores.check_broker, installation)
    yield from _guard("services", check_services.check_services, installation)
    yield from _guard("sandbox", check_services.check_sandbox, installation)
    if not can_be_read:
        yield warn(
            "policy and experts", "not checked: they are compared with the database", "Repair the database first."
        )
        return
    yield from _guard("heartbeats", check_stores.check_beats, installation)
    yield from _guard("policy", check_services.check_policy, installation)
    yield from _guard("experts", check_services.check_experts, installation)


def examine_url(url: str, key: str) -> Findings:
    """The checks possible for an api elsewhere: that it answers, its clock, the state of its loop.

    key: empty if there is none; checks that need one are then left out.
    """
    yield from _guard("python", check_machine.check_python)
    yield from _guard("libraries", check_machine.check_libraries, ROOT / "constraints.txt")
    yield from _guard("api", check_services.check_api, url, key)


def _guard(check: str, make: Callable[P, "Finding | Findings"], *args: P.args, **kwargs: P.kwargs) -> Findings:
    """The finding of a check; a check that fails is a finding too and does not keep the others from running."""
    try:
        made = make(*args, **kwargs)
        yield from [made] if isinstance(made, Finding) else made
    except Exception as error:  # noqa: BLE001 - not swallowed: told
        said = str(error).strip().partition("\n")[0]
        found = f"the check broke: {type(error).__name__}" + (f": {said}" if said else "")
        yield fail(check, found, "This check failed unexpectedly: please report it.")
