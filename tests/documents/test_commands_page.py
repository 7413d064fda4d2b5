"""docs/commands.md holds every command."""

from tests.documents.commands_page import PAGE, write


def test_the_commands_page_is_as_make_docs_writes_it() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == write(page), "run `make docs`"
