"""The documents that the tests read, and the places in them that `make docs` fills."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def put_between(page: str, name: str, rows: Iterable[str]) -> str:
    """The page with these rows between the mark of that name and the next end."""
    begin, end = f"<!-- make docs: {name} -->\n", "\n<!-- end -->"
    before, found, rest = page.partition(begin)
    assert found, f"the page has no place for {name}"
    after = rest.partition(end)[2]
    return "".join([before, begin, "\n", "\n".join(rows), "\n", end, after])
