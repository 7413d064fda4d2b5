"""Choosing by likeness."""

from services.store.teaching.similar import rank


def test_the_text_that_shares_the_rarest_words_comes_first() -> None:
    texts = ["add two numbers", "reverse a list", "add two lists", "sort a list of numbers"]
    assert rank("sort numbers in a list", texts) == [3, 1, 0, 2]


def test_equally_alike_texts_keep_their_order_and_equal_inputs_give_equal_choices() -> None:
    texts = ["say b", "say a", "say b", "nothing alike"]
    assert rank("say b", texts) == [0, 2, 1, 3]
    assert all(rank("say b", texts) == [0, 2, 1, 3] for _ in range(5))


def test_a_question_without_words_or_with_unknown_ones_keeps_the_order() -> None:
    assert rank("?!", ["b c", "a b"]) == [0, 1]
    assert rank("zebra", ["b c", "a b"]) == [0, 1]
    assert rank("zebra", ["?", "!"]) == [0, 1]
    assert rank("zebra", []) == []
