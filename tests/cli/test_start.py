"""Commands start fast: what is imported before a command does its work is what that command uses."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import typer.main
from typer.core import TyperGroup

from services.cli import program
from tests.cli.conftest import CommandLine

HEAVY = frozenset(
    [
        "torch",
        "transformers",
        "sqlalchemy",
        "psycopg",
        "alembic",
        "fastapi",
        "starlette",
        "uvicorn",
        "celery",
        "kombu",
        "aiohttp",
        "scipy",
        "numpy",
        "jinja2",
        "redis",
        "prometheus_client",
        "opentelemetry",
        "structlog",
        "pydantic_settings",
        "zstandard",
    ]
)
RUN = (
    "import json, sys\n"
    "from services.cli import program\n"
    "for arguments in json.loads(sys.argv[1]):\n"
    "    sys.argv = ['preceptor', *arguments]\n"
    "    try:\n"
    "        program.run()\n"
    "    except SystemExit as ended:\n"
    "        assert ended.code in (0, 2), (arguments, ended.code)\n"
    "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)\n"
)


def commands(group: TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group of the command line, by its words."""
    yield path
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def heavy_modules(lines: list[list[str]]) -> frozenset[str]:
    """The heavy libraries that a process has loaded once it has run these command lines."""
    ended = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(lines)], capture_output=True, text=True, check=False, env=os.environ
    )
    assert ended.returncode == 0, ended.stderr
    return HEAVY & set(json.loads(ended.stderr.splitlines()[-1]))


def test_the_help_of_no_command_loads_what_the_command_works_with() -> None:
    group = typer.main.get_command(program.app)
    assert isinstance(group, TyperGroup)
    lines = [[*words, "--help"] for words in commands(group)]
    assert len(lines) > 40
    assert heavy_modules([*lines, []]) == set()


@pytest.mark.integration
def test_commands_that_ask_the_api_load_its_client_and_nothing_of_its_server(cli: CommandLine) -> None:
    lists = [[noun, "list"] for noun in ("tasks", "rollouts", "experts", "consultations", "policies", "updates")]
    others = [["corrections", "list"], ["persons", "list"], ["keys", "list"], ["audit"], ["login"], ["key"]]
    assert heavy_modules([["status"], ["status", "--json"], ["loop", "off"], *lists, *others]) == set()
