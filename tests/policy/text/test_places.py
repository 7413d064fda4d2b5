"""Places of tokens in a text, in characters and back."""

from services.policy.text.places import Tokens, align


def tokens(*pieces: str) -> Tokens:
    found = align(pieces, "".join(pieces), 0)
    assert found is not None
    return found


def test_characters_and_tokens_are_found_from_each_other() -> None:
    text = tokens("def", " mean", "(x", "):")
    assert text.characters(1, 3) == (3, 10)
    assert text.cover(4, 6) == (1, 2)  # part of a token is the token
    assert text.cover(2, 9) == (0, 3)
    assert text.cover(12, 20) is None
    assert text.find("mean(") == (1, 3)
    assert text.find("nothing") is None


def test_a_character_of_several_tokens_is_covered_by_all_of_them() -> None:
    text = tokens("a", "", "", "語", "b")
    assert text.cover(1, 2) == (1, 4)
    assert text.cover(0, 1) == (0, 1)


def test_ends_are_counted_as_browsers_count() -> None:
    assert tokens("a", "😀", "b").ends_in_browsers() == "1,3,4"


def test_a_token_after_the_text_ends_with_it_and_tokens_of_another_text_are_refused() -> None:
    found = align(["ab", "c", "<end>"], "abc", 0)
    assert found is not None
    assert found.ends == (2, 3, 3)
    assert align(["ab", "d"], "abc", 0) is None


def test_tokens_of_earlier_turns_count_as_nothing() -> None:
    found = align(["call", "<end>", "4", "2", "<end>"], "42", 2)
    assert found is not None
    assert found.ends == (0, 0, 1, 2, 2)
    assert found.find("42") == (2, 4)
