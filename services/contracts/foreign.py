"""Rollouts as other systems write them: names that are understood, and a sentence for every name that is not.

A sampler's mask of 0 and 1 is one of booleans, a log-probability of +1e-7 is 0 with a rounding error. A reward has no
place in a rollout, but whoever sends one should read where it belongs.
"""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, WithJsonSchema
from pydantic_core import InitErrorDetails, PydanticCustomError

from services.contracts.base import Bool, Float

ROUNDING: Final = 1e-3
"""In nats: how far above 0 a log-probability may be for its sampler's rounding."""


def _read_flag(value: object) -> object:
    return bool(value) if type(value) in (int, float) and value in (0, 1) else value


_FLAG_SCHEMA: Final = {"anyOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 1}]}
Flag = Annotated[Bool, BeforeValidator(_read_flag), WithJsonSchema(_FLAG_SCHEMA, mode="validation")]
"""A boolean, or 0 or 1."""

LogProb = Annotated[Float, Field(ge=-1e4, le=ROUNDING), AfterValidator(lambda value: min(value, 0.0))]
"""A log-probability in nats; one just above 0 is 0."""

_SCORE: Final = (
    "is not a field of a rollout: a score is an expert's answer. Register a verifier for the task's domain "
    "(docs/bring-an-expert.md), which is asked about every rollout"
)
_PROMPT: Final = "is not a field of a rollout: its prompt is that of its task, named by task_id"
_IDS: Final = "is not a field of a rollout; the sampled ids go into token_ids"
_TEXT: Final = "is not a field of a rollout; the answer goes into text, or as ids into token_ids"
_MASK: Final = "is not a field of a rollout; which tokens the policy chose goes into action_mask"
_LOGPROBS: Final = (
    "is not a field of a rollout; the sampler's log-probabilities, one number a token, go into sampler_logprobs"
)
_SAMPLING: Final = "is not a field of a rollout; it belongs into sampling"
_ENDED: Final = "is not a field of a rollout: how it ended is read off its tokens. Leave it out"
_NARROWS: Final = (
    "is not a field of sampling: what was drawn with it is not of the policy's own distribution. Leave sampling and "
    "sampler_logprobs out; the rollout then trains the local term only"
)

_BELONGS: Final[Mapping[str, Collection[str]]] = {
    _SCORE: frozenset(
        [
            "reward",
            "rewards",
            "score",
            "scores",
            "return",
            "returns",
            "advantage",
            "advantages",
            "label",
            "values",
            "rm_scores",
            "token_level_scores",
            "token_level_rewards",
        ]
    ),
    _PROMPT: frozenset(
        [
            "prompt",
            "prompts",
            "messages",
            "question",
            "input_ids",
            "prompt_ids",
            "prompt_token_ids",
            "raw_prompt_ids",
            "prompt_mask",
            "prompt_logprobs",
        ]
    ),
    _IDS: frozenset(
        [
            "tokens",
            "responses",
            "response_ids",
            "response_token_ids",
            "output_ids",
            "output_token_ids",
            "completion_ids",
            "completion_token_ids",
        ]
    ),
    _TEXT: frozenset(
        ["completion", "completions", "response", "output", "answer", "content", "generated_text", "message", "choices"]
    ),
    _MASK: frozenset(
        [
            "mask",
            "loss_mask",
            "loss_masks",
            "token_loss_mask",
            "response_mask",
            "completion_mask",
            "assistant_mask",
            "assistant_masks",
            "attention_mask",
            "env_mask",
            "tool_mask",
        ]
    ),
    _LOGPROBS: frozenset(
        [
            "logprobs",
            "logprob",
            "log_probs",
            "token_logprobs",
            "old_logprobs",
            "old_log_probs",
            "response_logprobs",
            "completion_logprobs",
            "rollout_logprobs",
            "rollout_log_probs",
            "generation_logprobs",
        ]
    ),
    _SAMPLING: frozenset(
        ["temperature", "top_p", "top_k", "max_tokens", "max_new_tokens", "max_completion_tokens", "seed", "stop"]
    ),
    _ENDED: frozenset(["finish_reason", "stop_reason", "truncated", "is_truncated"]),
}
_OF_ROLLOUT: Final = {name: sentence for sentence, names in _BELONGS.items() for name in names}
_OF_SAMPLING: Final = dict.fromkeys(
    ("min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"), _NARROWS
) | {
    "n": "is not a field of sampling: a rollout is one answer; send siblings with the same group",
    "do_sample": "is not a field of sampling: the likeliest token each time is temperature 0",
}


_CHANGES_NOTHING: Final[Mapping[str, object]] = {
    "n": 1,
    "min_p": 0,
    "typical_p": 1,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
}
"""Settings as samplers log them when they are off."""


def without_defaults(sent: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that are off, and without null, which stands for the default."""
    return {
        name: value
        for name, value in sent.items()
        if value is not None and not (name in _CHANGES_NOTHING and value == _CHANGES_NOTHING[name])
    }


def refuse_names(sent: object, known: Collection[str], *, of: str) -> None:
    """Pass when all names are fields, or nothing is known of them. Raises ValidationError with a sentence for each
    that is not."""
    if not isinstance(sent, Mapping):
        return
    told = _OF_SAMPLING if of == "sampling" else _OF_ROLLOUT
    errors: list[InitErrorDetails] = []
    for name in sent:
        if name in known:
            continue
        if name in told:
            sentence = f"{name} {told[name]}"
        elif near := get_close_matches(str(name), known, n=1, cutoff=0.7):
            sentence = f"{str(name)[:100]} is not a field of {of}; did you mean {near[0]}?"
        else:
            continue
        error = PydanticCustomError("unknown_name", "{sentence}", {"sentence": sentence})
        errors.append({"type": error, "loc": (str(name)[:100],), "input": None})
    if errors:
        raise ValidationError.from_exception_data(of, errors)
