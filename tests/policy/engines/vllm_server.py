"""A server that speaks vLLM's HTTP protocol as vLLM 0.32.0 was heard to speak it, over a model it really computes.

What was recorded from the real one, started with docs/vllm.md's flags over the tiny policy of 128 channels, is
vllm_recorded.json: models, version, health, draws, scores, loading and unloading adapters, and how each is refused.
test_vllm_protocol.py sends those requests here and holds the answers against the recorded ones, numbers included. Of
its own this server has the random numbers of its draws, and what a test needs to see: what it was asked, how many
answers were dropped because their client had hung up, and a restart that forgets every adapter.
"""

import asyncio
import math
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from torch import Tensor
from transformers.cache_utils import DynamicCache

from services.contracts.base import Json, JsonObject
from services.policy.model.modeling import PolicyModel, decode_ids, load_policy
from tests.policy.adapters import load_adapter

MAX_MODEL_LEN = 2048


@dataclass
class VllmStandIn:
    """What the server holds and was asked. name: the base's, as `--served-model-name` or the model's path."""

    folder: Path
    name: str = "MODEL"
    processed: bool = True
    """The mode: logprobs after the temperature and what narrows the draw, or before."""
    asked: list[tuple[str, JsonObject]] = field(default_factory=list)
    num_dropped: int = 0
    adapters: dict[str, str] = field(default_factory=dict)
    takes_adapters: bool = True
    """False: it refuses every one, as without `--enable-lora`."""
    script: list[int] = field(default_factory=list)
    """Tokens to draw next, before any random one."""
    pause: float = 0.0
    """Before each token of an answer, in seconds."""

    def __post_init__(self) -> None:
        policy = load_policy(self.folder)
        self._tokenizer, self._vocab_size = policy.tokenizer, policy.vocab_size
        self._base: PolicyModel = policy.model
        self._models: dict[str, PolicyModel] = {}
        self._lock = threading.Lock()

    def restart(self, folder: Path | None = None) -> None:
        """Forget every adapter, as a new process does; with a folder, come back with other weights."""
        self.adapters.clear()
        if folder is not None:
            self._models.clear()
            self.folder, self._base = folder, load_policy(folder).model

    def find(self, name: str) -> PolicyModel | None:
        """The model of this name, if the server has it."""
        if name == self.name:
            return self._base
        if name not in self.adapters:
            return None
        path = self.adapters[name]
        if path not in self._models:
            self._models[path] = load_adapter(load_policy(self.folder).model, Path(path))
        return self._models[path]

    def render(self) -> JsonObject:
        """GET /v1/models."""
        held = [(self.name, "MODEL", None), *((name, path, self.name) for name, path in self.adapters.items())]
        return {
            "object": "list",
            "data": [
                {
                    "id": name,
                    "object": "model",
                    "created": 0,
                    "owned_by": "vllm",
                    "root": root,
                    "parent": parent,
                    "max_model_len": None if parent else MAX_MODEL_LEN,
                    "permission": [],
                }
                for name, root, parent in held
            ],
        }

    @torch.inference_mode()
    def score(self, model: PolicyModel, ids: list[int], width: int) -> list[Json]:
        """`prompt_logprobs`: none for the first token, then the token's own and the likeliest, at temperature 1."""
        logprobs = cast(Tensor, model(input_ids=torch.tensor([ids])).logits)[0].float().log_softmax(-1)
        found: list[Json] = [None]
        for row, own in zip(logprobs[:-1], ids[1:], strict=True):
            best = row.topk(self._vocab_size if width < 0 else width).indices.tolist()
            entries: JsonObject = {}
            for token_id in dict.fromkeys([own, *best]):
                rank = int((row > row[token_id]).sum()) + 1
                text = decode_ids(self._tokenizer, [token_id])
                entries[str(token_id)] = {"logprob": float(row[token_id]), "rank": rank, "decoded_token": text}
            found.append(entries)
        return found

    async def draw(self, model: PolicyModel, body: JsonObject, request: Request) -> JsonObject | None:
        """One choice; None if the client hung up."""
        prompt, stops = cast(list[int], body["prompt"]), cast(list[str], body["stop"])
        ends = cast(list[int], body["stop_token_ids"])
        limit = min(cast(int, body["max_tokens"]), MAX_MODEL_LEN - len(prompt))
        generator = torch.Generator().manual_seed(cast(int, body["seed"]))
        cache, ids, own, tops = DynamicCache(), list[int](), list[float](), list[JsonObject]()
        reason, stop_reason = "length", cast(Json, None)
        for _ in range(limit):
            await asyncio.sleep(self.pause)
            if await request.is_disconnected():
                self.num_dropped += 1
                return None
            logits = self._step(model, cache, [ids[-1]] if ids else prompt)
            token_id, reported = self._choose(logits, body, generator)
            ids.append(token_id)
            own.append(float(reported[token_id]))
            best = [token_id, *reported.topk(cast(int, body["logprobs"])).indices.tolist()]
            tops.append({f"token_id:{one}": float(reported[one]) for one in best})
            text = decode_ids(self._tokenizer, ids)
            hit = next((stop for stop in stops if stop in text), None)
            if token_id in ends or hit is not None:
                reason, stop_reason = "stop", token_id if hit is None else hit
                break
        return {
            "index": 0,
            "text": decode_ids(self._tokenizer, ids),
            "logprobs": {
                "text_offset": cast(Json, [0] * len(ids)),
                "token_logprobs": cast(Json, own),
                "tokens": cast(Json, [f"token_id:{one}" for one in ids]),
                "top_logprobs": cast(Json, tops),
            },
            "finish_reason": reason,
            "stop_reason": stop_reason,
            "token_ids": cast(Json, ids),
            "prompt_logprobs": None,
            "prompt_token_ids": cast(Json, prompt),
            "routed_experts": None,
        }

    @torch.inference_mode()
    def _step(self, model: PolicyModel, cache: DynamicCache, ids: list[int]) -> Tensor:
        output = model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
        return cast(Tensor, output.logits)[0, -1].float()

    def _choose(self, logits: Tensor, body: JsonObject, generator: torch.Generator) -> tuple[int, Tensor]:
        """A token, and the logprobs that are reported with it."""
        temperature, top_k = cast(float, body["temperature"]), cast(int, body["top_k"])
        raw = logits.log_softmax(-1)
        if self.script:
            return self.script.pop(0), raw
        if temperature == 0:
            return int(raw.argmax()), raw
        scaled = logits / temperature
        if top_k > 0:
            scaled = scaled.masked_fill(scaled < scaled.topk(top_k).values[-1], -math.inf)
        ordered, order = scaled.softmax(-1).sort(descending=True)
        beyond = ordered.cumsum(0) - ordered >= cast(float, body["top_p"])
        scaled = scaled.masked_fill(torch.zeros_like(beyond).scatter(0, order, beyond), -math.inf)
        token_id = int(torch.multinomial(scaled.softmax(-1), 1, generator=generator))
        return token_id, scaled.log_softmax(-1).clamp(min=-9999.0) if self.processed else raw


def make_app(held: VllmStandIn) -> FastAPI:
    """The server's application."""
    app = FastAPI()

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.get("/version")
    async def version() -> JsonObject:
        return {"version": "0.32.0"}

    @app.get("/v1/models")
    async def models() -> JsonObject:
        return held.render()

    @app.post("/v1/completions")
    async def complete(body: JsonObject, request: Request) -> Response:
        held.asked.append(("/v1/completions", body))
        name, prompt = cast(str, body["model"]), cast(list[int], body["prompt"])
        if (model := held.find(name)) is None:
            words = f"The model `{name}` does not exist. Valid aliases: <path>"
            return _refuse(404, words, "NotFoundError", "model")
        if (largest := max(prompt)) >= held._vocab_size:
            return _refuse(400, f"Token id {largest} is out of vocabulary", "BadRequestError", None)
        temperature = cast(float, body["temperature"])
        if temperature > 2:
            words = f"temperature must be in [0, 2], got {temperature}. (parameter=temperature, value={temperature})"
            return _refuse(400, words, "BadRequestError", "temperature")
        if len(cast(list[str], body["stop"])) > 4:
            return _refuse(400, "2 validation errors", "Bad Request", "body.stop")
        choice = await held.draw(model, body, request)
        if choice is None:
            return Response(status_code=499)
        if (width := body.get("prompt_logprobs")) is not None:
            choice["prompt_logprobs"] = held.score(model, prompt, cast(int, width))
        num_drawn = len(cast(list[int], choice["token_ids"]))
        return JSONResponse(
            {
                "id": "cmpl-0",
                "object": "text_completion",
                "created": 0,
                "model": name,
                "choices": [choice],
                "service_tier": None,
                "system_fingerprint": "vllm-0.32.0-stand-in",
                "usage": {
                    "prompt_tokens": len(prompt),
                    "total_tokens": len(prompt) + num_drawn,
                    "completion_tokens": num_drawn,
                    "prompt_tokens_details": {
                        "cached_tokens": 0,
                        "created_cache_tokens": None,
                        "multimodal_tokens": None,
                    },
                    "completion_tokens_details": None,
                },
                "kv_transfer_params": None,
                "ec_transfer_params": None,
                "metrics": None,
            }
        )

    @app.post("/v1/load_lora_adapter")
    async def load(body: dict[str, str]) -> Response:
        held.asked.append(("/v1/load_lora_adapter", dict(body)))
        name, path = body["lora_name"], body["lora_path"]
        if not held.takes_adapters:
            return _refuse(404, "Not Found", "NotFoundError", None)
        if name in held.adapters:
            words = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
            return _refuse(400, words + "set 'load_inplace' to True.", "InvalidUserInput", None)
        if not (Path(path) / "adapter_config.json").exists():
            return _refuse(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError", None)
        held.adapters[name] = path
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    @app.post("/v1/unload_lora_adapter")
    async def unload(body: dict[str, str]) -> Response:
        name = body["lora_name"]
        if held.adapters.pop(name, None) is None:
            return _refuse(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError", None)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    return app


def _refuse(status: int, words: str, kind: str, parameter: str | None) -> JSONResponse:
    return JSONResponse({"error": {"message": words, "type": kind, "param": parameter, "code": status}}, status)
