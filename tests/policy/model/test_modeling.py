"""Scoring with a shared prompt is the plain forward pass; adapters survive being stored."""

import json
from pathlib import Path

import pytest
import torch
from transformers import ByT5Tokenizer

from services.contracts.tasks import Message
from services.policy.artifacts import hash_tree
from services.policy.model.adapters import AdapterRefused, add_lora, read_deltas, save_adapter
from services.policy.model.modeling import (
    LoadedPolicy,
    ModelRefused,
    PolicyModel,
    decode_ids,
    encode_text,
    hash_base,
    hash_tokenizer,
    load_policy,
    prefill_prompt,
    project,
    render_prompt,
    response_hidden,
    score_responses,
)
from services.policy.model.tiny import make_tiny_policy
from tests.policy.adapters import load_adapter
from tests.policy.conftest import make_adapter

PROMPT = torch.tensor([1, 40, 50, 60, 70, 80, 2, 90])
RESPONSES = torch.tensor([[30, 31, 32, 33, 2], [100, 101, 2, 0, 0], [7, 0, 0, 0, 0]])
MASK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] + [False] * 4])


def score_plainly(model: PolicyModel, prompt: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """Logprobs of one response by one forward pass over prompt and response together."""
    ids = torch.cat((prompt, response))[None]
    logprobs: torch.Tensor = model(input_ids=ids).logits[0].float().log_softmax(-1)
    return logprobs[len(prompt) - 1 : -1].gather(-1, response[:, None])[:, 0]


def score_shared(model: PolicyModel) -> torch.Tensor:
    logprobs = project(model, response_hidden(model, PROMPT, RESPONSES, MASK)).log_softmax(-1)
    return logprobs.gather(-1, RESPONSES[..., None])[..., 0]


def test_a_shared_prompt_gives_the_logprobs_of_the_plain_forward_pass(policy: LoadedPolicy) -> None:
    with torch.no_grad():
        shared = score_shared(policy.model)
        for row, length in enumerate(MASK.sum(-1).tolist()):
            plain = score_plainly(policy.model, PROMPT, RESPONSES[row, :length])
            torch.testing.assert_close(shared[row, :length], plain, atol=1e-5, rtol=0)


def test_gradients_flow_through_the_shared_prompt_as_through_the_plain_forward_pass(model_folder: Path) -> None:
    model = load_policy(model_folder).model.requires_grad_(True)
    torch.autograd.backward((score_shared(model) * MASK).sum())
    shared = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    lengths = MASK.sum(-1).tolist()
    plain = [score_plainly(model, PROMPT, RESPONSES[row, :length]).sum() for row, length in enumerate(lengths)]
    torch.autograd.backward(torch.stack(plain).sum())
    assert shared
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(shared[name], parameter.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_padding_changes_no_value_and_no_gradient(model_folder: Path) -> None:
    model = load_policy(model_folder).model.requires_grad_(True)
    gradients = []
    for padding in (0, 200):
        responses = RESPONSES.masked_fill(~MASK, padding)
        model.zero_grad()
        torch.autograd.backward(response_hidden(model, PROMPT, responses, MASK).square().sum())
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


def test_padding_on_the_left_is_refused(policy: LoadedPolicy) -> None:
    with pytest.raises(ValueError, match="padded on the right"):
        response_hidden(policy.model, PROMPT, RESPONSES, MASK.flip(-1))


def test_a_known_prefix_changes_no_score(policy: LoadedPolicy) -> None:
    with torch.inference_mode():
        known = prefill_prompt(policy.model, torch.tensor([1, 40, 50, 60, 9, 9]))
        fresh = score_responses(policy.model, prefill_prompt(policy.model, PROMPT), RESPONSES, MASK)
        reused = score_responses(policy.model, prefill_prompt(policy.model, PROMPT, known), RESPONSES, MASK)
    torch.testing.assert_close(fresh.logprobs, reused.logprobs, atol=1e-5, rtol=0)


def test_the_top_k_and_its_tail_are_a_distribution_at_the_stated_temperature(policy: LoadedPolicy) -> None:
    with torch.inference_mode():
        prefill = prefill_prompt(policy.model, PROMPT)
        scores = score_responses(policy.model, prefill, RESPONSES, MASK, temperature=0.5, top_k=5)
        logits = project(policy.model, response_hidden(policy.model, PROMPT, RESPONSES, MASK))
    expected = (logits / 0.5).log_softmax(-1)
    torch.testing.assert_close(
        scores.logprobs[MASK], expected.gather(-1, RESPONSES[..., None])[..., 0][MASK], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(scores.top_logprobs[MASK], expected.topk(5).values[MASK], atol=1e-5, rtol=0)
    total = scores.top_logprobs.exp().sum(-1) + scores.tail_logmass.exp()
    torch.testing.assert_close(total[MASK], torch.ones(int(MASK.sum())), atol=1e-5, rtol=0)


def test_a_fresh_adapter_leaves_the_output_as_it_was(model_folder: Path) -> None:
    loaded = load_policy(model_folder)
    with torch.no_grad():
        before = score_shared(loaded.model)
        torch.testing.assert_close(score_shared(add_lora(loaded.model)), before)


def test_a_stored_adapter_computes_what_it_computed_before(model_folder: Path, tmp_path: Path) -> None:
    trained = make_adapter(model_folder, tmp_path / "a", seed=1).model
    again = load_adapter(load_policy(model_folder).model, tmp_path / "a")
    with torch.no_grad():
        torch.testing.assert_close(score_shared(again), score_shared(trained), atol=1e-6, rtol=0)


def test_the_same_adapter_always_has_the_same_address(model_folder: Path, tmp_path: Path) -> None:
    loaded = load_policy(model_folder)
    model = add_lora(loaded.model, seed=3)
    save_adapter(model, tmp_path / "first", loaded.base_sha256)
    save_adapter(model, tmp_path / "second", loaded.base_sha256)
    assert hash_tree(tmp_path / "first") == hash_tree(tmp_path / "second")
    assert {file.name for file in (tmp_path / "first").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_an_adapter_of_another_base_is_refused(model_folder: Path, tmp_path: Path, policy: LoadedPolicy) -> None:
    make_adapter(model_folder, tmp_path / "a", seed=1)
    with pytest.raises(AdapterRefused, match="trained on base"):
        read_deltas(tmp_path / "a", policy.model, {"0" * 64})


def test_an_adapter_that_names_its_base_by_the_former_hash_is_taken(
    tmp_path: Path, model_folder: Path, policy: LoadedPolicy
) -> None:
    assert policy.former_sha256 != policy.base_sha256
    save_adapter(add_lora(load_policy(model_folder).model), tmp_path / "a", policy.former_sha256)
    assert read_deltas(tmp_path / "a", policy.model, policy.names)


def test_an_adapter_of_other_shapes_or_with_nan_is_refused(tmp_path: Path, policy: LoadedPolicy) -> None:
    wide = load_policy(make_tiny_policy(tmp_path / "wide", hidden_size=256))
    save_adapter(add_lora(wide.model, r=4), tmp_path / "wide-adapter", policy.base_sha256)
    with pytest.raises(AdapterRefused, match="shape"):
        read_deltas(tmp_path / "wide-adapter", policy.model, policy.names)
    broken = add_lora(load_policy(make_tiny_policy(tmp_path / "same", hidden_size=128)).model, r=4)
    with torch.no_grad():
        next(p for name, p in broken.named_parameters() if "lora_A" in name).fill_(float("nan"))
    save_adapter(broken, tmp_path / "nan", policy.base_sha256)
    with pytest.raises(AdapterRefused, match="not finite"):
        read_deltas(tmp_path / "nan", policy.model, policy.names)


def test_a_prompt_is_rendered_up_to_where_the_policy_answers(policy: LoadedPolicy) -> None:
    ids = render_prompt(policy.tokenizer, [Message(role="user", content="hé")])
    assert decode_ids(policy.tokenizer, ids) == "<|im_start|>user\nhé<|im_end|>\n<|im_start|>assistant\n"
    assert ids[0] == 1
    assert 2 in ids


def test_text_survives_being_tokenised(policy: LoadedPolicy) -> None:
    text = "  def f(x):\n\treturn 'naïve — 数'  \n"
    assert decode_ids(policy.tokenizer, encode_text(policy.tokenizer, text)) == text


def test_the_tokenizer_hash_is_the_same_in_every_process_and_differs_between_tokenizers(
    policy: LoadedPolicy, model_folder: Path
) -> None:
    assert load_policy(model_folder).tokenizer_hash == policy.tokenizer_hash
    policy_again = load_policy(model_folder)
    policy_again.tokenizer.add_tokens(["newtoken"])
    assert hash_tokenizer(policy_again.tokenizer) != policy.tokenizer_hash


def test_a_tokenizer_without_a_compiled_backend_has_a_hash_of_its_whole_vocabulary_too() -> None:
    few, same, more = (ByT5Tokenizer(extra_ids=number) for number in (2, 2, 3))
    assert hash_tokenizer(few) == hash_tokenizer(same) != hash_tokenizer(more)


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model.bin.index.json",
        "model.safetensors.index.json",
        "model-q4.gguf",
        "consolidated.00.pth",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "adapter_model.safetensors",
        "adapter_config.json",
        "quantize_config.json",
    ],
)
def test_two_folders_that_differ_in_a_file_that_is_computed_with_are_two_bases(tmp_path: Path, name: str) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    for number, folder in enumerate(folders):
        (folder / name).parent.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / name).write_bytes(b"weights %d" % number)
    assert hash_base(folders[0])[0] != hash_base(folders[1])[0]
    (folders[1] / name).write_bytes(b"weights 0")
    assert hash_base(folders[0])[0] == hash_base(folders[1])[0]


def test_a_base_is_what_its_links_point_to_whatever_is_written_about_it(tmp_path: Path) -> None:
    blobs, linked, plain = tmp_path / "blobs", tmp_path / "linked", tmp_path / "plain"
    for folder in (blobs, linked, plain):
        folder.mkdir()
    (blobs / "1").write_bytes(b"weights")
    (plain / "model.safetensors").write_bytes(b"weights")
    (linked / "model.safetensors").symlink_to(blobs / "1")
    before = hash_base(linked)[0]
    assert before == hash_base(plain)[0]
    for name in ("README.md", "LICENSE", ".gitattributes"):
        (linked / name).write_text("about it")
    (linked / "again").symlink_to(linked)
    assert hash_base(linked)[0] == before
    (blobs / "1").write_bytes(b"others")
    assert hash_base(linked)[0] != before
    (blobs / "1").unlink()
    with pytest.raises(ModelRefused, match=r"model\.safetensors cannot be read"):
        hash_base(linked)


@pytest.mark.parametrize("setting", ["logits_scaling", "final_logit_softcapping", "logit_scale"])
def test_a_model_that_changes_its_logits_is_refused_by_name(tmp_path: Path, setting: str) -> None:
    folder = make_tiny_policy(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {setting: 1.0}))
    load_policy(folder)
    (folder / "config.json").write_text(json.dumps(config | {setting: 8.0}))
    with pytest.raises(ModelRefused, match=f"changes its logits \\({setting} 8.0\\)"):
        load_policy(folder)


def test_the_tokenizers_own_end_comes_first_of_all_that_end_an_answer(tmp_path: Path) -> None:
    folder = make_tiny_policy(tmp_path / "model")
    stated = json.loads((folder / "generation_config.json").read_text()) | {"eos_token_id": [5, 2, 0]}
    (folder / "generation_config.json").write_text(json.dumps(stated))
    assert load_policy(folder).eos_token_ids == (2, 0, 5)
