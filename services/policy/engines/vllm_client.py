"""Speaks vLLM's HTTP protocol: draws and scores token ids, loads and unloads LoRA adapters. Loads no torch.

    GET  /v1/models                  the base (no parent) and the adapters
    GET  /version
    POST /v1/completions             draws from token ids; `prompt_logprobs` scores them instead
    POST /v1/load_lora_adapter       where VLLM_ALLOW_RUNTIME_LORA_UPDATING=1
    POST /v1/unload_lora_adapter

Token ids go in and come out; vLLM's own text is never read. Every sampling setting is sent, since the server takes
missing ones from the model's generation_config.json. Checked with 0.32.0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import aiohttp
from pydantic import BaseModel, ConfigDict, ValidationError

from services.contracts.base import JsonObject
from services.runtime.errors import InvalidInput, ServiceUnavailable

CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 600.0
KEEP_ALIVE_SECONDS: Final = 3.0
"""Below the five after which the server closes an idle connection: no request goes out on one that is being closed."""

MAX_STOPS: Final = 4
"""vLLM refuses more; an answer then runs on past the others, and is cut where it should have ended."""

MAX_WORDS: Final = 500

Reply = TypeVar("Reply", bound=BaseModel)


class VllmUnavailable(ServiceUnavailable):
    """The vLLM server is away, or lacks something that is being brought back; the same request may work soon."""

    title = "vLLM server unavailable"
    retry_after_seconds = 5


class VllmModelMissing(VllmUnavailable):
    """The server does not know the model or adapter: it was restarted, or the adapter was unloaded."""

    title = "vLLM adapter missing"


class VllmRefused(InvalidInput):
    """The vLLM server will not do this as it is asked or as it was started; the words are its own."""

    title = "vLLM refused"


class _Reply(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ServedModel(_Reply):
    """One model a server has: the base, or an adapter with the base as its `parent`."""

    id: str
    parent: str | None = None
    max_model_len: int | None = None


class _Models(_Reply):
    data: list[ServedModel]


class _ServerVersion(_Reply):
    version: str


class _Logprob(_Reply):
    logprob: float
    rank: int | None = None


class _ChoiceLogprobs(_Reply):
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]


class _Choice(_Reply):
    token_ids: list[int]
    logprobs: _ChoiceLogprobs
    prompt_logprobs: list[dict[int, _Logprob] | None] | None = None


class _CachedTokens(_Reply):
    cached_tokens: int | None = None


class _Usage(_Reply):
    prompt_tokens: int
    prompt_tokens_details: _CachedTokens | None = None


class _Completion(_Reply):
    choices: list[_Choice]
    usage: _Usage


@dataclass(frozen=True)
class DrawSettings:
    """How tokens are drawn, as in the policy's contract. stop_token_ids end an answer and are kept, as is `stop`.

    Of more than MAX_STOPS stop strings the server hears of the first only.
    """

    max_tokens: int
    temperature: float
    seed: int = 0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Drawn:
    """Drawn tokens and the server's logprobs of them, both [T]; numbers of prompt tokens it read and reused."""

    token_ids: list[int]
    logprobs: list[float]
    num_prompt_tokens: int
    num_cached_tokens: int


@dataclass(frozen=True)
class Position:
    """At one token: its own logprob, and ids and logprobs of the likeliest, likeliest first; at temperature 1."""

    own: float
    top_ids: list[int]
    top_logprobs: list[float]


class VllmClient:
    """Connections to one vLLM server, for one event loop. Cancelling a call makes the server drop the work."""

    def __init__(self, base_url: str, api_key: str = "") -> None:
        self.base_url = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def list_models(self) -> list[ServedModel]:
        """The models at the server, the base first."""
        return (await self._ask("GET", "/v1/models", None, _Models)).data

    async def read_version(self) -> str:
        """The server's version."""
        return (await self._ask("GET", "/version", None, _ServerVersion)).version

    async def draw(self, model: str, prompt: Sequence[int], settings: DrawSettings) -> Drawn:
        """One answer to a prompt."""
        reply = await self._complete(model, prompt, settings, {"logprobs": 0})
        choice, details = reply.choices[0], reply.usage.prompt_tokens_details
        if len(choice.token_ids) != len(choice.logprobs.token_logprobs):
            raise VllmUnavailable("the vLLM server sent tokens without their logprobs")
        return Drawn(
            token_ids=choice.token_ids,
            logprobs=choice.logprobs.token_logprobs,
            num_prompt_tokens=reply.usage.prompt_tokens,
            num_cached_tokens=(details.cached_tokens or 0) if details is not None else 0,
        )

    async def read(self, model: str, token_ids: Sequence[int], start: int, width: int) -> list[Position]:
        """Logprobs at temperature 1 of the tokens from number `start` on, with the `width` likeliest at each.

        width -1: the whole vocabulary. start >= 1: the first token has no prediction.
        """
        settings = DrawSettings(max_tokens=1, temperature=0)
        reply = await self._complete(model, token_ids, settings, {"logprobs": 0, "prompt_logprobs": width})
        found = reply.choices[0].prompt_logprobs or []
        if len(found) != len(token_ids):
            raise VllmUnavailable("the vLLM server sent no logprobs of the prompt")
        return [
            _read_position(entries or {}, token_id, width)
            for entries, token_id in zip(found[start:], token_ids[start:], strict=True)
        ]

    async def read_likeliest(self, model: str, prompt: Sequence[int], temperature: float) -> float:
        """The logprob of the likeliest next token at a temperature."""
        settings = DrawSettings(max_tokens=1, temperature=temperature)
        reply = await self._complete(model, prompt, settings, {"logprobs": 1})
        return max(reply.choices[0].logprobs.top_logprobs[0].values())

    async def load_adapter(self, name: str, path: str) -> None:
        """Load the adapter in a folder that the server sees; one that is loaded under this name already stays.

        Raises VllmRefused if the server cannot use it or does not load adapters.
        """
        try:
            await self._send("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        except VllmRefused as error:
            if "already been loaded" not in error.detail:
                raise
        except VllmModelMissing as error:
            raise VllmRefused(
                f"the vLLM server does not load {path}: {error.detail}",
                hint="It needs --enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and a view of the artifacts folder.",
            ) from error
        except VllmUnavailable as error:
            await self._send("GET", "/health", None)  # away; or well, and it is the adapter that does not fit
            raise VllmRefused(error.detail) from error

    async def unload_adapter(self, name: str) -> None:
        """Unload an adapter. Raises VllmModelMissing if it is not loaded."""
        await self._send("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    async def _complete(
        self, model: str, prompt: Sequence[int], settings: DrawSettings, wanted: JsonObject
    ) -> _Completion:
        body: JsonObject = {
            "model": model,
            "prompt": list(prompt),
            "n": 1,
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": settings.seed,
            "stop": list(settings.stop[:MAX_STOPS]),
            "include_stop_str_in_output": True,
            "stop_token_ids": list(settings.stop_token_ids),
            "ignore_eos": True,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            **wanted,
        }
        return await self._ask("POST", "/v1/completions", body, _Completion)

    async def _ask(self, method: str, path: str, body: JsonObject | None, reply: type[Reply]) -> Reply:
        content = await self._send(method, path, body)
        try:
            return reply.model_validate_json(content)
        except ValidationError as error:
            raise VllmUnavailable(f"{method} {path}: not what vLLM answers: {error}"[:MAX_WORDS]) from error

    async def _send(self, method: str, path: str, body: JsonObject | None) -> bytes:
        try:
            async with self._open().request(method, self.base_url + path, json=body) as response:
                content = await response.read()
                status = response.status
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            words = f"{type(error).__name__}: {error}"[:MAX_WORDS]
            raise VllmUnavailable(f"the vLLM server at {self.base_url} is away: {words}") from error
        if status < 300:
            return content
        said = f"{method} {path}: {status}: {content[:MAX_WORDS].decode(errors='replace')}"
        if status == 404:
            raise VllmModelMissing(said)
        if status == 401:
            raise VllmUnavailable(said, hint="Give PRECEPTOR_VLLM_KEY the key that the vLLM server was started with.")
        if status in (408, 429) or status >= 500:
            raise VllmUnavailable(said)
        raise VllmRefused(said)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                connector=aiohttp.TCPConnector(
                    limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS
                ),  # the engine limits its requests
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS),
            )
        return self._session


def _read_position(entries: dict[int, _Logprob], token_id: int, width: int) -> Position:
    """From vLLM's answer: the likeliest tokens, and the token itself at any rank."""
    if token_id not in entries:
        raise VllmUnavailable("the vLLM server left out a token's own logprob")
    ranked = sorted(entries.items(), key=lambda pair: (-pair[1].logprob, pair[0] != token_id))
    if width >= 0:
        ranked = ranked[:width]
    return Position(
        own=entries[token_id].logprob,
        top_ids=[one for one, _ in ranked],
        top_logprobs=[entry.logprob for _, entry in ranked],
    )
