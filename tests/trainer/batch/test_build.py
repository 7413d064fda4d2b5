"""What the teacher is shown, which rollouts are siblings, and how answers become terms."""

import itertools
import math
from dataclasses import replace

import pytest

from services.contracts.answers import Continuation, SamplesDistribution, TopKDistribution
from services.contracts.rollouts import Sampling
from services.contracts.sources import ContextSource
from services.contracts.templates import Template
from services.policy.model.modeling import LoadedPolicy, decode_ids, encode_text
from services.store.loop.standing import Standing, Verdict
from tests.trainer.batch.building import build, only
from tests.trainer.world import answer, facts, reference
from trainer.batch.contexts import Showable
from trainer.batch.rows import ImitationRow, Row
from trainer.objectives.base import OwnSettings
from trainer.objectives.sft import Sft


def test_the_rollouts_own_ids_are_kept_and_never_tokenised_again(policy: LoadedPolicy) -> None:
    odd = (encode_text(policy.tokenizer, "é")[0], 5, 2)  # half a character, then an end token inside
    row = only(policy, facts(policy, token_ids=odd, action_mask=(True,) * 3, sampler_logprobs=(-1.0,) * 3))
    assert row.token_ids == odd


def test_an_expert_that_is_not_active_trains_nothing(policy: LoadedPolicy) -> None:
    row = only(policy, facts(policy, answers=(replace(reference(), weight=0.0),)))
    assert not row.taught


def test_a_score_alone_trains_nothing(policy: LoadedPolicy) -> None:
    assert not only(policy, facts(policy, answers=(answer(score=1.0),))).taught


def test_a_correction_of_this_rollout_gives_a_label_and_a_rest_and_is_not_shown_to_its_teacher(
    policy: LoadedPolicy,
) -> None:
    said = answer(expert="human", solution="2+2=4!", corrected=True)
    row = only(policy, facts(policy, "2+2=5!", answers=(said,), late=True))
    assert not row.contexts
    [label], [imitation] = row.labels, row.imitations
    assert (label.step, label.token_id) == (4, encode_text(policy.tokenizer, "4")[0])
    assert learned(policy, imitation) == "!"
    assert imitation.num_learned == 1
    assert label.source.answers == imitation.source.answers == (said.id,)


def test_a_label_is_never_put_on_a_token_the_policy_did_not_choose(policy: LoadedPolicy) -> None:
    said = answer(expert="human", solution="2+2=4!", corrected=True)
    mask = (True,) * 4 + (False, True)
    row = only(policy, facts(policy, "2+2=5!", answers=(said,), action_mask=mask))
    assert not row.labels
    assert [learned(policy, one) for one in row.imitations] == ["!"]


TURNS = "f(6)|42|so 41"
MASK = (True,) * 4 + (False,) * 4 + (True,) * 5  # the policy's call, what the tool said, and the policy again


@pytest.mark.parametrize(
    ("corrected", "label", "rest"),
    [
        pytest.param("f(6)|42|so 42", (12, "2"), "", id="after the tool turn"),
        pytest.param("f(7)|42|so 42!", (2, "7"), ")so 42!", id="before it: what the tool said is not learned"),
        pytest.param("f(6)|49|so 49", None, "so 49", id="inside it: what the person makes the tool say is not learned"),
        pytest.param("f(6)|422|so 41", None, "so 41", id="put into it"),
        pytest.param("f(6)", None, "", id="cut from it on"),
        pytest.param("f(6)|42|so 41!", None, "!", id="after the end"),
        pytest.param("xyz!", (0, "x"), "", id="all of it written anew, the tool turn with it"),
    ],
)
def test_what_a_tool_said_is_never_imitated(
    policy: LoadedPolicy, corrected: str, label: tuple[int, str] | None, rest: str
) -> None:
    said = answer(expert="human", solution=corrected, corrected=True)
    row = only(policy, facts(policy, TURNS, answers=(said,), action_mask=MASK))
    found = [(one.step, decode_ids(policy.tokenizer, [one.token_id])) for one in row.labels]
    assert found == ([] if label is None else [label])
    assert "".join(learned(policy, one) for one in row.imitations) == rest


def learned(policy: LoadedPolicy, imitation: ImitationRow) -> str:
    """The tokens that are learned, as text."""
    return decode_ids(policy.tokenizer, list(itertools.compress(imitation.token_ids, imitation.learned)))


def test_a_corrected_answer_ends_where_the_rollout_had_ended(policy: LoadedPolicy) -> None:
    eos = policy.eos_token_ids[0]
    said = answer(expert="human", solution="2+2=4", corrected=True)
    ids = (*encode_text(policy.tokenizer, "2+2=5"), eos)
    row = only(
        policy, replace(facts(policy, answers=(said,)), token_ids=ids, action_mask=(True,) * 6, sampler_logprobs=None)
    )
    [label], [imitation] = row.labels, row.imitations
    assert (label.step, imitation.token_ids) == (4, (*encode_text(policy.tokenizer, "2+2=4"), eos))
    assert imitation.learned == (False,) * 5 + (True,)


def test_a_greedy_rollout_trains_the_local_term_at_temperature_one(policy: LoadedPolicy) -> None:
    row = only(policy, replace(facts(policy, answers=(reference(),)), sampling=Sampling(temperature=0)))
    assert (row.credited, row.temperature) == (False, 1.0)


def test_a_correction_is_of_the_last_turn_and_earlier_ones_stay(policy: LoadedPolicy) -> None:
    eos = policy.eos_token_ids[0]
    before = (*encode_text(policy.tokenizer, "f(6)"), eos, *encode_text(policy.tokenizer, "|42|"))
    ids = (*before, *encode_text(policy.tokenizer, "so 41"), eos, *encode_text(policy.tokenizer, "\n"))
    mask = (*[True] * 5, *[False] * 4, *[True] * 6, False)
    said = answer(expert="human", solution="so 42", corrected=True)
    lesson = replace(
        facts(policy, answers=(said,)), token_ids=ids, action_mask=mask, answer_start=9, sampler_logprobs=None
    )
    row = only(policy, lesson)
    [label], [imitation] = row.labels, row.imitations
    assert (label.step, decode_ids(policy.tokenizer, [label.token_id])) == (13, "2")
    assert imitation.token_ids == (*before, *encode_text(policy.tokenizer, "so 42"), eos)
    assert imitation.learned == (*[False] * 14, True)


def top_k(length: int, policy: LoadedPolicy) -> TopKDistribution:
    return TopKDistribution(
        tokenizer_hash=policy.tokenizer_hash,
        token_ids=[[4, 5]] * length,
        logprobs=[[-0.6931472, -1.3862944]] * length,
        tail_mass=[0.25] * length,
    )


def test_a_top_k_over_the_rollout_is_a_whole_coverage_term(policy: LoadedPolicy) -> None:
    row = only(policy, facts(policy, "four", answers=(answer(expert="teacher", distribution=top_k(4, policy)),)))
    assert row.covered
    assert row.top_k[0].expert == "teacher"


def test_a_top_k_over_another_length_makes_the_lesson_invalid_and_spares_its_siblings(policy: LoadedPolicy) -> None:
    bad = facts(policy, "four", answers=(answer(distribution=top_k(3, policy)),))
    good = facts(policy, "five", index=1, answers=(reference(),))
    batch = build(policy, [bad, good])
    assert [row.lesson_id for row in batch.rows] == [good.lesson_id]
    assert "3 rows" in batch.invalid[bad.lesson_id]


MEANINGFUL: dict[str, object] = {
    "token_ids": (4, 5),
    "action_mask": (True, True),
    "sampler_logprobs": (-1.0, -1.0),
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"token_ids": (4, 100_000)}, "outside the vocabulary"),
        ({"token_ids": (4,) * 600, "action_mask": (True,) * 600}, "the model reads 512"),
        ({"action_mask": (False, False)}, "no token of the rollout is an action"),
        ({"token_ids": ()}, "no tokens"),
        ({"action_mask": (True,)}, "the action mask has 1 entries for 2 tokens"),
        ({"sampler_logprobs": (-1.0,)}, "1 sampler logprobs for 2 tokens"),
        ({"score": math.nan}, "its score nan lies outside 0..1"),
    ],
)
def test_a_lesson_that_means_nothing_is_invalid_with_the_reason(
    policy: LoadedPolicy, changes: dict[str, object], reason: str
) -> None:
    lesson = replace(facts(policy), **(MEANINGFUL | changes))  # type: ignore[arg-type]
    batch = build(policy, [lesson])
    assert not batch.rows
    assert reason in batch.invalid[lesson.lesson_id]


def test_top_p_text_and_unknown_samplers_get_no_credit_for_later_costs(policy: LoadedPolicy) -> None:
    assert only(policy, facts(policy)).credited
    assert not only(policy, facts(policy, sampling=Sampling(top_p=0.9))).credited
    assert not only(policy, facts(policy, sampling=None)).credited
    assert not only(policy, facts(policy, sampler_logprobs=None)).credited
    assert not only(policy, facts(policy, tokenized_at_ingest=True)).credited


def samples(policy: LoadedPolicy, text: str, **changes: object) -> Row:
    base: dict[str, object] = {"tokenizer_hash": policy.tokenizer_hash}
    distribution = SamplesDistribution.model_validate(base | changes)
    return only(policy, facts(policy, text, answers=(answer(distribution=distribution),)))


def test_a_continuation_counts_at_its_prefix_and_on_while_it_agrees_with_the_rollout(policy: LoadedPolicy) -> None:
    ids = encode_text(policy.tokenizer, "four")
    other = encode_text(policy.tokenizer, "x")[0]
    row = samples(
        policy,
        "four",
        prefixes=[1],
        continuations=[[Continuation(token_ids=[ids[1], other, ids[3]]), Continuation(token_ids=[other])]],
    )
    assert row.samples[0].tokens == {1: (ids[1], other), 2: (other,)}
    assert not row.samples[0].whole
    assert not row.covered


def test_drawn_prefixes_keep_their_probabilities_and_later_agreeing_tokens_do_not_count(policy: LoadedPolicy) -> None:
    ids = encode_text(policy.tokenizer, "four")
    row = samples(policy, "four", prefixes=[1], continuations=[[Continuation(token_ids=ids[1:])]], probabilities=[0.25])
    assert row.samples[0].tokens == {1: (ids[1],)}
    assert row.samples[0].probabilities == {1: 0.25}
    assert row.covered


def test_samples_at_every_action_token_cover_the_whole_rollout(policy: LoadedPolicy) -> None:
    ids = encode_text(policy.tokenizer, "four")
    row = samples(policy, "four", prefixes=[0], continuations=[[Continuation(token_ids=ids)]])
    assert row.samples[0].whole


def test_text_counts_only_where_tokenising_it_keeps_the_prefix(policy: LoadedPolicy) -> None:
    row = samples(policy, "four", prefixes=[2], continuations=[[Continuation(text="xy")]])
    assert row.samples[0].tokens == {2: (encode_text(policy.tokenizer, "x")[0],)}
    half = facts(policy, "é!", answers=())
    broken = SamplesDistribution(prefixes=[1], continuations=[[Continuation(text="x")]])
    assert not only(policy, replace(half, answers=(answer(distribution=broken),))).samples


def test_a_text_without_words_after_a_kept_prefix_ends_the_answer(policy: LoadedPolicy) -> None:
    end = policy.eos_token_ids[0]
    row = samples(
        policy,
        "four",
        prefixes=[2],
        continuations=[[Continuation(text=""), Continuation(text="x")]],
        probabilities=[0.5],
    )
    assert row.samples[0].tokens == {2: (end, encode_text(policy.tokenizer, "x")[0])}
    assert row.samples[0].probabilities == {2: 0.5}


def test_where_a_drawn_place_has_no_tokens_none_counts_by_its_probability(policy: LoadedPolicy) -> None:
    """The letter "é" is two tokens, and text cannot go on between them; after both it can."""
    drawn = SamplesDistribution(
        prefixes=[1, 2], continuations=[[Continuation(text="x")], [Continuation(text="x")]], probabilities=[0.5, 0.25]
    )
    row = only(policy, facts(policy, "é!", answers=(answer(distribution=drawn),)))
    assert row.samples[0].tokens == {2: (encode_text(policy.tokenizer, "x")[0],)}
    assert row.samples[0].probabilities == {}
    assert not row.samples[0].whole
    assert not row.covered


def test_sft_learns_the_very_solution_the_teacher_is_shown_to_its_end(policy: LoadedPolicy) -> None:
    row = only(policy, facts(policy, answers=(reference("It is 4."),)))
    [text] = Sft(OwnSettings(), 1.0, [row]).texts(row)
    assert decode_ids(policy.tokenizer, text.token_ids) == "It is 4.<|im_end|>"
    assert text.num_learned == len(text.token_ids)
    assert text.source.answers == row.contexts[0].source.answers


def test_a_distribution_counts_only_while_its_source_teaches(policy: LoadedPolicy) -> None:
    said = answer(expert="teacher", distribution=top_k(4, policy))
    drawn = SamplesDistribution(
        tokenizer_hash=policy.tokenizer_hash,
        prefixes=[0],
        continuations=[[Continuation(token_ids=encode_text(policy.tokenizer, "f"))]],
    )
    lesson = facts(policy, "four", answers=(said, answer(expert="box", distribution=drawn)))
    row = only(policy, lesson, showable=Showable())
    assert (row.top_k, row.samples) == ((), ())
    place = (said.expert_id, ContextSource.DISTRIBUTION, "math")
    measured = Showable(standing=Standing({place: {Template.TURNS: Verdict(True, 0.01)}}))
    row = only(policy, lesson, showable=measured)
    assert ([one.source.kind for one in row.top_k], row.samples) == ([ContextSource.DISTRIBUTION], ())


def test_staleness_is_counted_in_policy_versions(policy: LoadedPolicy) -> None:
    assert only(policy, facts(policy, policy_number=1)).staleness == 2
    assert only(policy, facts(policy, policy_number=None)).staleness is None


def test_the_rest_of_a_continuation_after_its_samples_is_dropped(policy: LoadedPolicy) -> None:
    ids = encode_text(policy.tokenizer, "four")
    theirs = [ids[1], *encode_text(policy.tokenizer, "xyz")]
    row = samples(policy, "four", prefixes=[1], continuations=[[Continuation(token_ids=theirs)]])
    assert row.samples[0].tokens == {1: (ids[1],), 2: (theirs[1],)}  # "x" is a sample at the place where they parted
    assert not row.imitations


def test_an_unknown_id_anywhere_in_a_continuation_makes_the_lesson_invalid(policy: LoadedPolicy) -> None:
    theirs = [*encode_text(policy.tokenizer, "x"), 100_000]
    distribution = SamplesDistribution(
        tokenizer_hash=policy.tokenizer_hash, prefixes=[0], continuations=[[Continuation(token_ids=theirs)]]
    )
    lesson = facts(policy, "four", answers=(answer(distribution=distribution),))
    assert "token id 100000 of a sample is outside the vocabulary" in build(policy, [lesson]).invalid[lesson.lesson_id]


def test_a_continuation_that_begins_in_a_tool_turn_has_no_samples(policy: LoadedPolicy) -> None:
    late = SamplesDistribution(
        tokenizer_hash=policy.tokenizer_hash,
        prefixes=[0],
        continuations=[[Continuation(token_ids=encode_text(policy.tokenizer, "four"))]],
    )
    tool_turn = facts(policy, "four", action_mask=(False, True, True, True), answers=(answer(distribution=late),))
    assert not only(policy, tool_turn).samples
