"""A model for tests and rehearsals."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

CHATML: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tiny_policy(folder: Path, seed: int = 0, hidden_size: int = 64, num_layers: int = 2) -> Path:
    """Write a random Llama with a byte-level tokenizer (259 tokens) and a ChatML template, made without a network.

    It answers nonsense at once: for tests and for rehearsing the loop.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    cast(Callable[[], None], disable_progress_bar)()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    symbols = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    make_tokenizer = cast(Callable[..., PreTrainedTokenizerBase], PreTrainedTokenizerFast)
    tokenizer = make_tokenizer(
        tokenizer_object=backend, eos_token=special[2], pad_token=special[2], clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=len(symbols),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
        # Wider than usual, so that a random model has preferences and its logprobs differ visibly.
        initializer_range=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
