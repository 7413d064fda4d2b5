"""Write the table of docs/commands.md from the command line itself: `make docs`."""

from collections.abc import Iterator
from typing import Final, cast

import typer.main
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from services.cli import program
from tests.documents.pages import ROOT, put_between

PAGE: Final = ROOT / "docs" / "commands.md"
ROOT_COMMAND: Final = cast(TyperGroup, typer.main.get_command(program.app))
EVERYWHERE: Final = {"--home", "--url", "--json", "--limit", "--help"}


def find_commands(group: TyperGroup, before: str = "") -> Iterator[tuple[str, TyperCommand]]:
    """All commands with their whole names, `tasks import` for example."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from find_commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", cast(TyperCommand, command)


def _show(argument: TyperArgument) -> str:
    """An argument's name, in brackets where it may be left out."""
    name = str(argument.name).upper()
    return name if argument.required else f"[{name}]"


def write_rows() -> Iterator[str]:
    """A table of all commands, in the order of `preceptor --help`."""
    yield "| command | does | options |"
    yield "|---|---|---|"
    for name, command in find_commands(ROOT_COMMAND):
        given = " ".join([name, *(_show(p) for p in command.params if isinstance(p, TyperArgument))])
        options = [p.opts[0] for p in command.params if isinstance(p, TyperOption) and p.opts[0] not in EVERYWHERE]
        does = (command.help or "").split("\n")[0].replace("|", "\\|")
        yield f"| `{given}` | {does} | {', '.join(f'`{option}`' for option in options)} |"


def write(page: str) -> str:
    """The page with the table as the commands are now."""
    return put_between(page, "commands", write_rows())


if __name__ == "__main__":
    PAGE.write_text(write(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
