"""The documentation names what exists: every command with its options, and every route."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

import pytest
import typer.main
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from sandbox.server.app import create_app as create_sandbox
from sandbox.settings import SandboxSettings
from services.api.app import create_app
from services.cli import program
from services.experts.__main__ import build_app
from services.policy.engines.base import Engine
from services.policy.server.app import create_app as create_policy
from services.runtime.settings import Settings
from tests.documents.pages import PAGES, ROOT

API: Final = ROOT / "docs" / "api.md"
GROUP: Final = cast(TyperGroup, typer.main.get_command(program.app))
COMMAND: Final = re.compile(r"(?:^|[\s(])(?:\.venv/bin/)?preceptor (.*)")
ROUTE: Final = re.compile(
    r"(?:(GET|POST|PUT|PATCH|DELETE) |\$API|\d)(?:\{endpoint\})?(/(?:v1/|run_code|healthz)[^\s`?\"'|,;)]*)"
)


def code(page: str) -> Iterator[str]:
    """The lines of a page's code blocks, and its pieces of code between ticks."""
    for number, part in enumerate(re.split(r"^ *```.*$", page, flags=re.MULTILINE)):
        if number % 2:
            yield from part.replace("\\\n", " ").splitlines()
        else:
            yield from (" ".join(piece.split()) for piece in re.findall(r"`([^`]+)`", part))


def named_commands(page: str) -> Iterator[str]:
    """The command lines that a page quotes; of a group also without `preceptor` in front, as in `experts requeue`."""
    for line in code(page):
        found = COMMAND.search(line)
        if found:
            yield found[1]
        elif re.fullmatch(rf"(?:{'|'.join(groups())}) [a-z-]+(?: [A-Z[<…-].*)?", line):
            yield line


def groups() -> list[str]:
    return [name for name, command in GROUP.commands.items() if isinstance(command, TyperGroup)]


def find_fault(line: str) -> str | None:
    """What of a command line does not exist; None where all of it does."""
    words = shlex.split(line, comments=True)
    words = words[: next((place for place, word in enumerate(words) if word in ("|", ">", "&&", "&", ";")), None)]
    command: TyperCommand | TyperGroup = GROUP
    while isinstance(command, TyperGroup) and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return f"no command {words[0]}"
        command = cast(TyperCommand | TyperGroup, command.commands[words.pop(0)])
    known = {flag: p for p in command.params if isinstance(p, TyperOption) for flag in p.opts}
    num_arguments = sum(isinstance(p, TyperArgument) for p in command.params)
    while words:
        word = words.pop(0)
        if word.startswith("--") and word != "--help":
            flag, _, value = word.partition("=")
            if flag not in known:
                return f"no option {flag}"
            if not known[flag].is_flag and not value and words:
                words.pop(0)
        elif not word.startswith("-") and word != "…":
            num_arguments -= 1
    return "too many arguments" if num_arguments < 0 else None


def test_a_command_that_does_not_exist_is_found() -> None:
    assert list(
        named_commands("`experts nonsense` and `preceptor nonsense` and `experts`\n```\npreceptor up --no\n```")
    ) == [
        "experts nonsense",
        "nonsense",
        "up --no",
    ]
    faults = [find_fault(line) for line in ("experts nonsense", "up --no", "down now", "tasks import FILE --json")]
    assert faults == ["no command nonsense", "no option --no", "too many arguments", None]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_the_documentation_exists(page: Path) -> None:
    faults = {line: find_fault(line) for line in named_commands(page.read_text(encoding="utf-8"))}
    assert {line: fault for line, fault in faults.items() if fault is not None} == {}


def paths() -> set[tuple[str, ...]]:
    """The paths of all services, part by part, with `*` for what is filled in."""
    documents = (
        create_app(Settings()).openapi(),
        build_app(Settings()).openapi(),
        create_policy(cast(Engine, None), "secret").openapi(),
        create_sandbox(SandboxSettings()).openapi(),
    )
    found = {path for document in documents for path in document["paths"]}
    found |= {"/v1/expert", "/v1/consult"}  # of one expert that is served alone
    return {tuple("*" if part.startswith("{") else part for part in path.split("/")) for path in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_route_in_the_documentation_exists(page: Path) -> None:
    known, missing = paths(), []
    for line in code(page.read_text(encoding="utf-8")):
        for found in ROUTE.finditer(line):
            parts = found[2].rstrip("./:").split("/")
            if not any(
                len(path) == len(parts) and all(a in ("*", b) for a, b in zip(path, parts, strict=True))
                for path in known
            ):
                missing.append(found[2])
    assert missing == []


def test_every_route_of_the_api_is_in_its_documentation() -> None:
    page = API.read_text(encoding="utf-8")
    routes = create_app(Settings()).openapi()["paths"]
    words = {path: [part for part in path.split("/")[1:] if not part.startswith("{")] for path in routes}
    assert [path for path, parts in words.items() if any(f"/{part}" not in page for part in parts)] == []
