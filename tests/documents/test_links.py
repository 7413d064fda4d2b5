"""Links between the documents lead somewhere: files, headings and pictures."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.documents.pages import PAGES, ROOT

FENCE: Final = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
LINK: Final = re.compile(r"(?<!`)!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING: Final = re.compile(r"^#+ (.+)$", re.MULTILINE)
FILE: Final = re.compile(r"`((?:services|trainer|sandbox|tests|benchmarks|migrations|containers)/[a-z0-9_/.-]*)`")
DOCUMENTS: Final = [*PAGES, ROOT / "trainer" / "LOG.md", *sorted((ROOT / "benchmarks" / "results").glob("*.md"))]


def read(page: Path) -> str:
    """A document without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def find_anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(read(page)))
    return {heading.strip().replace(" ", "-") for heading in words}


def find_broken(page: Path, links: list[str]) -> Iterator[str]:
    """The links of a document that lead nowhere; links to other sites are not followed."""
    for link in links:
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in find_anchors(target)):
            yield link


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_every_link_of_a_document_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert list(find_broken(page, LINK.findall(read(page)))) == []


def test_a_link_to_a_missing_file_or_heading_or_picture_is_found() -> None:
    links = LINK.findall("[a](docs/api.md#keys) [b](docs/none.md) [c](docs/api.md#none) ![d](docs/images/none.png)")
    assert list(find_broken(ROOT / "README.md", links)) == links[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_folder_that_a_document_names_is_there(page: Path) -> None:
    assert [path for path in FILE.findall(read(page)) if not (ROOT / path).exists()] == []


def test_the_walk_of_a_rollout_counts_the_files_that_it_names() -> None:
    walk = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## One rollout")[2]
    walk = walk.partition("A rollout that the sampler draws")[0]
    assert f"There are {len(set(re.findall(r'`([a-z_/]+[.]py)`', walk)))}." in walk


def test_every_page_and_picture_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        links = LINK.findall(read(page)) if page.suffix == ".md" else []
        found = {
            (page.parent / link.partition("#")[0]).resolve() for link in links if not link.startswith(("http", "#"))
        }
        waiting += found - reached
    expected = {*PAGES, *(ROOT / "docs" / "images").iterdir()}
    assert expected - reached == set()
