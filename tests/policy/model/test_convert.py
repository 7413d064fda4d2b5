"""A model name becomes a folder, or an error that says what to do."""

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from safetensors.numpy import load_file

from services.policy.model import convert
from services.policy.model.convert import ModelUnavailable, convert_gguf, obtain_starter_model, resolve_model
from services.policy.model.modeling import load_policy

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "1", "2"]


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A one-layer Llama with two query heads and one key head of size 4; returns its tensors by their GGUF names."""
    random = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (len(TOKENS), 8),
        "output_norm.weight": (8,),
        "blk.0.attn_norm.weight": (8,),
        "blk.0.ffn_norm.weight": (8,),
        "blk.0.attn_q.weight": (8, 8),
        "blk.0.attn_k.weight": (4, 8),
        "blk.0.attn_v.weight": (4, 8),
        "blk.0.attn_output.weight": (8, 8),
        "blk.0.ffn_gate.weight": (16, 8),
        "blk.0.ffn_up.weight": (16, 8),
        "blk.0.ffn_down.weight": (8, 16),
    }
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_vocab_size(len(TOKENS))
    writer.add_context_length(64)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_gguf_model_becomes_a_folder_that_loads(tmp_path: Path) -> None:
    tensors = write_gguf(tmp_path / "m.gguf")
    convert_gguf(tmp_path / "m.gguf", tmp_path / "model", progress=lambda line: None)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    np.testing.assert_array_equal(weights["model.embed_tokens.weight"], tensors["token_embd.weight"])
    # Rows of a head are stored as pairs (0, half), (1, half + 1), ...; here each half is in one piece.
    np.testing.assert_array_equal(
        weights["model.layers.0.self_attn.k_proj.weight"], tensors["blk.0.attn_k.weight"][[0, 2, 1, 3]]
    )
    loaded = load_policy(tmp_path / "model")
    assert loaded.eos_token_ids == (2,)
    assert loaded.tokenizer("ab12<|im_end|>")["input_ids"] == [5, 6, 7, 2]


def test_an_unknown_tensor_stops_the_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "m.gguf")
    monkeypatch.delitem(convert._BLOCK_TENSORS, "ffn_up")
    with pytest.raises(ModelUnavailable, match=r"blk\.0\.ffn_up"):
        convert_gguf(tmp_path / "m.gguf", tmp_path / "model", progress=lambda line: None)


def test_a_folder_stands_for_itself(model_folder: Path) -> None:
    assert resolve_model(str(model_folder)) == model_folder.resolve()


@pytest.mark.parametrize("spec", ["no/such/folder", "nothing", "./missing/x"])
def test_what_is_neither_a_folder_nor_an_id_is_refused(spec: str) -> None:
    with pytest.raises(ModelUnavailable, match="neither a folder nor"):
        resolve_model(spec)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"no config\.json"):
        resolve_model(str(tmp_path))


def test_a_verified_conversion_is_used_without_any_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Path:
        raise ModelUnavailable("downloaded")

    monkeypatch.setattr(convert, "_download_wheel", refuse)
    folder = tmp_path / "models" / f"smollm2-135m-instruct-fp32-r{convert.CONVERSION_REVISION}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    convert.write_manifest(folder)
    assert obtain_starter_model(lambda line: None, cache=tmp_path) == folder
    assert "config.json" in json.loads((folder / "manifest.json").read_text())["files"]
    (folder / "config.json").write_text("{ }")
    with pytest.raises(ModelUnavailable, match="downloaded"):
        obtain_starter_model(lambda line: None, cache=tmp_path)
    assert not folder.exists()
