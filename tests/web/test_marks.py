"""Remarks on an answer, hidden characters, and differences between texts."""

import re
import unicodedata
from html import unescape

from services.policy.text.places import Tokens, align
from services.web.presenters import marks
from services.web.presenters.differences import MAX_WORDS, compare
from services.web.presenters.hidden import HIDDEN, exact, reveal, tell
from services.web.presenters.marks import Remark

BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def tokens(*pieces: str) -> Tokens:
    found = align(pieces, "".join(pieces), 0)
    assert found is not None
    return found


def test_an_answer_is_marked_where_remarks_lie_and_overlaps_carry_both() -> None:
    text = tokens("one", " two", " three")
    remarks = [Remark(1, "e", "r", 0, 2, ""), Remark(2, "e", "r", 1, 3, "")]
    assert [(str(part.html), part.numbers) for part in marks.split(text.text, text, remarks)] == [
        ("one", (1,)),
        (" two", (1, 2)),
        (" three", (2,)),
    ]


def test_text_is_escaped_and_keeps_its_line_ends() -> None:
    assert exact("<b>\r\n&") == "&lt;b&gt;&#13;\n&amp;"


def test_hidden_characters_are_shown_as_marks_and_stay_in_the_text() -> None:
    text = "a \u202eevil\u202c <b>\x08\r\n\tx\ry"
    shown = reveal(text)
    assert [str(tag) for tag in re.findall(r'data-code="([^"]+)"', shown)] == ["U+202E", "U+202C", "U+0008", "U+000D"]
    assert 'title="right-to-left override (U+202E)"' in shown
    assert unescape(re.sub("<[^>]+>", "", shown)).replace("&#13;", "\r") == text
    assert tell(text + "\u202e").startswith(
        "right-to-left override (U+202E, 2 times), pop directional formatting (U+202C)"
    )
    assert (reveal("plain\n\tשלום é 👩‍💻"), tell("plain\n\tשלום é 👩‍💻")) == ("plain\n\tשלום é 👩‍💻", "")


def test_every_control_of_the_writing_direction_is_hidden() -> None:
    directions = [chr(c) for c in range(0x3000) if unicodedata.bidirectional(chr(c)) in BIDI_CONTROLS]
    assert len(directions) == 9
    assert all(HIDDEN.fullmatch(one) for one in [*directions, "\u061c", "\u200e", "\u200f"])


def lines(old: str, new: str) -> list[tuple[str, str]]:
    """The difference as signs and lines, changed words in brackets; a gap as the number of lines left out."""
    found = compare(old, new)
    assert found is not None
    signs = {"equal": " ", "insert": "+", "delete": "-", "gap": "~"}
    return [
        (
            signs[line.kind],
            "".join(f"[{part.text}]" if part.is_changed else part.text for part in line.parts)
            or str(line.num_left_out),
        )
        for line in found
    ]


def test_a_difference_is_told_by_line_and_then_by_word() -> None:
    assert lines("def f(n):\n    return n % 2", "def f(n):\n    return n % 2 == 0") == [
        (" ", "def f(n):"),
        ("-", "    return n % 2"),
        ("+", "    return n % 2[ == 0]"),
    ]
    assert lines("a quick fox", "a slow fox jumps") == [("-", "a [quick] fox"), ("+", "a [slow] fox[ jumps]")]


def test_lines_with_little_in_common_are_told_whole() -> None:
    assert lines("Example usage:\nx = 1", "if ready:\nx = 1") == [
        ("-", "[Example usage:]"),
        ("+", "[if ready:]"),
        (" ", "x = 1"),
    ]


def test_unchanged_lines_far_from_a_change_are_left_out_unless_they_hide_something() -> None:
    old = "\n".join("abcdefgh")
    assert lines(old, old.replace("h", "H")) == [("~", "5"), (" ", "f"), (" ", "g"), ("-", "[h]"), ("+", "[H]")]
    assert lines(old, old) == []
    assert lines("a\n\u202eb\nc", "a\n\u202eb\nc") == [(" ", "\u202eb")]


def test_texts_too_long_to_compare_while_one_waits_are_not_compared() -> None:
    assert compare("a " * MAX_WORDS, "b") is None
