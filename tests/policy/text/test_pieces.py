"""Which characters each token adds to a text."""

import pytest

from services.policy.text.pieces import split_into_pieces


def decode(token_ids: list[int]) -> str:
    """Bytes as tokens: a character outside ASCII takes several."""
    return bytes(token_ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("text", ["", "abc", "größer", "日本語!", "a😀b", "line\nline"])
def test_pieces_join_to_the_text_and_a_split_character_belongs_to_its_last_token(text: str) -> None:
    pieces = split_into_pieces(list(text.encode()), decode)
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text)


def test_a_text_that_ends_inside_a_character_keeps_the_sign_for_it() -> None:
    assert split_into_pieces([97, *"é".encode()[:1]], decode) == ["a", "\ufffd"]


def test_a_tokenizer_that_writes_spaces_only_between_tokens_is_heard_out() -> None:
    def join(token_ids: list[int]) -> str:
        return " ".join("ab"[i] for i in token_ids)

    assert split_into_pieces([0, 1, 0], join) == ["a", " b", " a"]
