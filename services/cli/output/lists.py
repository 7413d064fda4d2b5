"""Lists on the command line: a table of a few columns with short ids, or JSON with whole ones."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import typer

from services.cli.ids import Id, shorten
from services.cli.options import api_of, show
from services.contracts.base import JsonObject


def list_page(
    path: str,
    home: Path | None,
    url: str | None,
    limit: int,
    as_json: bool,
    columns: tuple[str, ...],
    query: Mapping[str, str | Id | None] | None = None,
    whole: str = "",
) -> None:
    """Print up to `limit` items of a list of the api, newest first: these columns of each, or all of it as JSON.

    whole: the column whose ids are not shortened, because they are typed whole.
    """
    with api_of(home, url) as api:
        filters = {
            name: str(value.find(api)) if isinstance(value, Id) else value for name, value in (query or {}).items()
        }
        items = list(api.pages(path, limit, filters))
    show(list(items), as_json, lambda: typer.echo("\n".join(format_rows(items, columns, whole)) or "none"))


def format_rows(items: list[JsonObject], columns: tuple[str, ...], whole: str = "") -> Iterator[str]:
    """A line of names and a line for each item, in aligned columns; no lines if there are no items."""
    cells = [[_cell(item.get(column), column != whole) for column in columns] for item in items]
    widths = [max([len(c), *(len(row[i]) for row in cells)]) for i, c in enumerate(columns)]
    for row in [list(columns), *cells] if cells else []:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _cell(value: object, is_short: bool) -> str:
    text = "" if value is None else " ".join(str(value).split())
    text = shorten(text) if is_short else text
    return text if len(text) <= 60 else text[:59] + "…"
