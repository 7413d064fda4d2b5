"""What our own teacher would have said along a lesson is kept as its few likeliest tokens, for people to see."""

from pathlib import Path

import numpy as np
import pytest
import torch

from services.contracts.answers import Feedback, FeedbackSpan
from services.contracts.ids import new_id
from services.policy.model.modeling import LoadedPolicy, decode_ids, spell_tokens
from services.store.core.transaction import Store
from services.store.ledger import distributions, lessons, updates
from services.store.ledger.distributions import TopK
from services.store.ledger.updates import Contribution
from services.store.loop import vocabularies
from services.store.tables.ledger import TeacherChoicesRow
from tests.rows import start_update
from tests.trainer.losses.test_fused import make_batch
from tests.trainer.step.test_update import CONFIG, SETTINGS, batch_of, fresh, group, train
from tests.trainer.world import ANSWERS, World, answer, facts
from trainer.losses import fused
from trainer.losses.fused import FusedStudent
from trainer.losses.student import NUM_CHOICES, ScoredStudent
from trainer.losses.terms import FullVocabulary, WholeTerm
from trainer.step.reading import read_teacher
from trainer.step.teacher import make_teacher, read_under_contexts


@pytest.mark.parametrize("tile_rows", [1024, 7, 2])
@pytest.mark.parametrize("vocabulary", [23, 3])
def test_both_readings_find_the_tokens_an_expert_finds_likeliest(
    vocabulary: int, tile_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "TILE_ROWS", tile_rows)
    monkeypatch.setattr(fused, "TOKENS", 3)
    hidden, weight, rollouts, plain, unprojected = make_batch(0, torch.float64, vocabulary)
    present = torch.ones(int(rollouts.action_mask.sum()), dtype=torch.bool)
    present[1] = False
    [full, states] = [term.expert for term in (plain[0], unprojected[0]) if isinstance(term, WholeTerm)]
    assert isinstance(full, FullVocabulary)
    scored = ScoredStudent(hidden @ weight.T, rollouts).expect(full, present).choices
    tiled = FusedStudent(hidden, weight, rollouts).expect(states, present).choices  # type: ignore[arg-type]
    sorted_out = full.logprobs[rollouts.action_mask].sort(-1, descending=True)
    count = min(NUM_CHOICES, vocabulary)
    for choices in (scored, tiled):
        assert torch.allclose(choices.probs[present], sorted_out.values[present, :count].exp())
        assert torch.equal(choices.ids[present], sorted_out.indices[present, :count])
        assert not choices.probs[1].any()


def test_an_update_tells_what_the_teacher_would_have_said(model_folder: Path, policy: LoadedPolicy) -> None:
    state = fresh(model_folder)
    batch = batch_of(state, group(policy))
    row = batch.rows[2]
    ids, exists = torch.tensor([row.token_ids]), torch.ones(1, len(row.token_ids), dtype=torch.bool)
    teacher = make_teacher(state.average, state.base_sha256)
    states = read_under_contexts(state.model, teacher, [row.contexts[0]], ids, exists)
    expert = read_teacher(state.model, states, SETTINGS.teacher_temperature, fused=False)
    assert isinstance(expert, FullVocabulary)
    expected = expert.logprobs[0].topk(NUM_CHOICES)
    told = next(one.choices for one in train(state, batch).contributions if one.lesson_id == row.lesson_id)
    assert told is not None
    assert told.token_ids.tolist() == expected.indices.tolist()
    assert np.allclose(told.logprobs, expected.values.numpy(), atol=1e-4)
    assert np.allclose(told.tail_mass, 1 - expected.values.exp().sum(-1).numpy(), atol=1e-4)


def test_feedback_on_a_span_tells_what_the_teacher_would_have_said_there_and_nowhere_else(
    model_folder: Path, policy: LoadedPolicy
) -> None:
    remark = answer(feedback=Feedback(spans=[FeedbackSpan(start=1, end=2, text="not that")]))
    state = fresh(model_folder)
    lessons = [facts(policy, text, index=index, answers=(remark,)) for index, text in enumerate(ANSWERS)]
    told = train(state, batch_of(state, lessons), CONFIG).contributions[0].choices
    assert told is not None
    assert (told.tail_mass < 1).tolist() == [step == 1 for step in range(len(told.tail_mass))]


@pytest.mark.integration
def test_choices_are_stored_with_the_update_that_was_applied(store: Store, world: World) -> None:
    world.lessons(num_groups=1)
    owner = new_id()
    told = TopK(
        np.array([[70_000, 2], [3, 4]]), np.log(np.array([[0.5, 0.25], [0.75, 0.125]])), np.array([0.25, 0.125])
    )
    with store.transaction() as session:
        rows = lessons.claim(session, world.lineage_id, owner, num_rollouts=8, max_late=0, lease_seconds=60)
        ids = [row.id for row in rows]
        update = start_update(session, world.lineage_id, owner, ids)
        given = [Contribution(lesson, choices=told if lesson == ids[0] else None) for lesson in ids]
        updates.apply(session, update.id, owner, checkpoint_sha256="c" * 64, metrics={}, contributions=given)
    with store.transaction() as session:
        [row] = session.query(TeacherChoicesRow)
        assert (row.update_id, row.lesson_id) == (update.id, ids[0])
        kept = distributions.unpack_top_k(row.packed, row.num_rows, row.width)
    assert kept.token_ids.tolist() == told.token_ids.tolist()
    assert np.allclose(kept.logprobs, told.logprobs, atol=1e-3)
    assert np.allclose(kept.tail_mass, told.tail_mass)


def test_every_token_is_spelled_as_the_tokenizer_reads_it(policy: LoadedPolicy) -> None:
    texts = spell_tokens(policy.tokenizer)
    assert len(texts) == len(policy.tokenizer)
    assert texts[65] == decode_ids(policy.tokenizer, [65])


@pytest.mark.integration
def test_a_vocabulary_is_written_once(store: Store) -> None:
    with store.transaction() as session:
        assert vocabularies.texts(session, "a" * 64) == ()
        vocabularies.add(session, "a" * 64, ["<s>", " the", "é"])
        vocabularies.add(session, "a" * 64, ["other"])
        assert vocabularies.is_known(session, "a" * 64)
        assert vocabularies.texts(session, "a" * 64) == ("<s>", " the", "é")
