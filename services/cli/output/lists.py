"""Lists on the command line: a table of a few columns, or JSON."""

from collections.abc import Iterator
from pathlib import Path

import typer

from services.cli.client import Query
from services.cli.options import api_of, show
from services.contracts.base import JsonObject


def list_page(
    path: str,
    home: Path | None,
    url: str | None,
    limit: int,
    as_json: bool,
    columns: tuple[str, ...],
    query: Query | None = None,
) -> None:
    """Print up to `limit` items of a list of the api, newest first: these columns of each, or all of it as JSON."""
    with api_of(home, url) as api:
        items = list(api.pages(path, limit, query))
    show(list(items), as_json, lambda: typer.echo("\n".join(format_rows(items, columns)) or "none"))


def format_rows(items: list[JsonObject], columns: tuple[str, ...]) -> Iterator[str]:
    """A line of names and a line for each item, in columns of one width; nothing for no items."""
    cells = [[_cell(item.get(column)) for column in columns] for item in items]
    widths = [max([len(c), *(len(row[i]) for row in cells)]) for i, c in enumerate(columns)]
    for row in [list(columns), *cells] if cells else []:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _cell(value: object) -> str:
    text = "" if value is None else " ".join(str(value).split())
    return text if len(text) <= 60 else text[:59] + "…"
