"""What an editor or a browser changes in passing is not what the person changed."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.edits import keep_unmeant

ANSWER = "def f(n):  \n\treturn n\u00a0+ 1\n\n# caf\u00e9 'x'"


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(ANSWER + "\n", id="a final newline"),
        pytest.param(ANSWER.replace("\n", "\r\n") + "\r\n", id="line ends"),
        pytest.param("\ufeff" + ANSWER, id="a byte order mark"),
        pytest.param(ANSWER.replace("\u00a0", " "), id="a no-break blank that became a blank"),
        pytest.param(ANSWER.replace(" ", "\u00a0"), id="blanks that became no-break blanks"),
        pytest.param(unicodedata.normalize("NFD", ANSWER), id="characters in parts"),
        pytest.param(ANSWER.replace("  \n", "\n"), id="blanks at the end of a line"),
        pytest.param(ANSWER.replace("'x'", "\u2018x\u2019"), id="quotes that were curled"),
    ],
)
def test_what_nobody_meant_to_change_is_as_it_was(sent: str) -> None:
    assert keep_unmeant(ANSWER, sent) == ANSWER
    assert keep_unmeant(ANSWER, sent.replace("n)", "number)")) == ANSWER.replace("n)", "number)")


def test_what_was_changed_is_kept_to_the_letter() -> None:
    assert keep_unmeant("a \u201cb\u201d", 'a "b"') == 'a "b"'  # curly quotes made straight, as code wants them
    assert keep_unmeant("one\r\ntwo\r\n", "one\nand\ntwo\n") == "one\r\nand\r\ntwo\r\n"
    assert keep_unmeant("4", "42\n") == "42"
    assert keep_unmeant("a\n\nb\n", "a\nb\n") == "a\nb\n"


@given(st.text("ab\n\u00e9'", max_size=30), st.integers(0, 30), st.text("xyz(\n", max_size=5))
def test_an_edit_that_comes_back_through_a_browser_is_the_edit_alone(text: str, place: int, typed: str) -> None:
    """Texts without blanks: those at the end of a line are the one thing that cannot be told from an editor's doing."""
    edited = text[:place] + typed + text[place:]
    expected = edited.rstrip() + text[len(text.rstrip()) :]
    assert keep_unmeant(text, edited) == expected
    sent = unicodedata.normalize("NFD", edited.replace("\n", "\r\n"))
    assert keep_unmeant(text, sent + "\r\n") == expected
