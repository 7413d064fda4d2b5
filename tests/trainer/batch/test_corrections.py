"""Where a person departed from a rollout: found on bytes, told in the rollout's own tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from services.policy.model.modeling import LoadedPolicy, decode_ids, encode_text
from trainer.batch.corrections import find_departure

EOS = 2


@pytest.fixture(scope="module")
def tokenizer(policy: LoadedPolicy) -> PreTrainedTokenizerBase:
    """One token a byte."""
    return policy.tokenizer


def test_an_unchanged_text_is_no_departure(tokenizer: PreTrainedTokenizerBase) -> None:
    assert find_departure(tokenizer, encode_text(tokenizer, "four"), "four", [EOS]) is None


def test_the_closing_end_token_is_not_part_of_the_text(tokenizer: PreTrainedTokenizerBase) -> None:
    assert find_departure(tokenizer, [*encode_text(tokenizer, "four"), EOS], "four", [EOS]) is None


def test_the_label_is_the_persons_first_token_at_the_first_token_that_differs(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    departure = find_departure(tokenizer, encode_text(tokenizer, "2+2=5!"), "2+2=4!", [EOS])
    assert departure is not None
    assert departure.num_kept == 4
    assert departure.label == encode_text(tokenizer, "4")[0]
    assert decode_ids(tokenizer, departure.token_ids) == "2+2=4!"
    assert not departure.ends


def test_an_insertion_departs_where_it_was_put(tokenizer: PreTrainedTokenizerBase) -> None:
    departure = find_departure(tokenizer, encode_text(tokenizer, "ab"), "axb", [EOS])
    assert departure is not None
    assert (departure.num_kept, departure.label) == (1, encode_text(tokenizer, "x")[0])


def test_a_cut_tail_is_labelled_with_the_end_of_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    departure = find_departure(tokenizer, encode_text(tokenizer, "four, or five"), "four", [EOS])
    assert departure is not None
    assert departure.ends
    assert (departure.num_kept, departure.label) == (4, EOS)
    assert departure.token_ids == (*encode_text(tokenizer, "four"), EOS)


def test_going_on_after_an_ended_answer_is_labelled_at_its_end_token(tokenizer: PreTrainedTokenizerBase) -> None:
    departure = find_departure(tokenizer, [*encode_text(tokenizer, "4"), EOS], "42", [EOS])
    assert departure is not None
    assert (departure.num_kept, departure.label) == (1, encode_text(tokenizer, "2")[0])


def test_going_on_after_an_answer_without_an_end_token_has_no_label_only_a_rest(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    departure = find_departure(tokenizer, encode_text(tokenizer, "4"), "42", [EOS])
    assert departure is not None
    assert (departure.num_kept, departure.label) == (1, None)
    assert departure.token_ids == tuple(encode_text(tokenizer, "42"))


def test_characters_that_share_their_first_byte_depart_at_the_byte_that_differs(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    # é and è are c3 a9 and c3 a8; the tokens are single bytes, so the first of them is common
    spoken = encode_text(tokenizer, "é")
    departure = find_departure(tokenizer, spoken, "è", [EOS])
    assert departure is not None
    assert len(spoken) == 2
    assert departure.num_kept == 1
    assert departure.label == encode_text(tokenizer, "è")[1]


def test_a_departure_inside_a_token_moves_back_to_its_start(merging: PreTrainedTokenizerBase) -> None:
    spoken = encode_text(merging, "xab")
    assert len(spoken) == 2  # x, ab
    departure = find_departure(merging, spoken, "xac", [EOS])
    assert departure is not None
    assert departure.num_kept == 1
    assert departure.label == encode_text(merging, "a")[0]
    assert decode_ids(merging, departure.token_ids) == "xac"


@settings(max_examples=150, deadline=None)
@given(spoken=st.text("aé→😀 b", max_size=8), corrected=st.text("aé→😀 b", min_size=1, max_size=8))
def test_the_kept_tokens_are_the_rollouts_own_and_the_whole_spells_the_correction(
    policy_tokenizer: PreTrainedTokenizerBase, spoken: str, corrected: str
) -> None:
    ids = encode_text(policy_tokenizer, spoken) if spoken else []
    departure = find_departure(policy_tokenizer, ids, corrected, [EOS])
    if spoken == corrected:
        assert departure is None
        return
    assert departure is not None
    assert list(departure.token_ids[: departure.num_kept]) == ids[: departure.num_kept]
    said = departure.token_ids[:-1] if departure.ends else departure.token_ids
    assert decode_ids(policy_tokenizer, said) == corrected
    if departure.label is not None:
        assert departure.label == departure.token_ids[departure.num_kept]
        assert departure.label != ids[departure.num_kept]


@pytest.fixture(scope="module")
def policy_tokenizer(policy: LoadedPolicy) -> PreTrainedTokenizerBase:
    return policy.tokenizer


@pytest.fixture(scope="module")
def merging() -> PreTrainedTokenizerBase:
    """Bytes, and one merge: a and b make ab."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    symbols = special + sorted(pre_tokenizers.ByteLevel.alphabet()) + ["ab"]
    backend = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    made: PreTrainedTokenizerBase = PreTrainedTokenizerFast(tokenizer_object=backend)  # type: ignore[no-untyped-call]
    return made
