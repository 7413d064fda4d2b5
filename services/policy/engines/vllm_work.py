"""One answer drawn, one response scored at a vLLM server, to the letter of the policy's contract.

An answer is a request of its own with a seed made of (seed, row). vLLM's stop strings only save work: the end of an
answer is decided here, token by token, and an answer that the server ended too early (an opening fence looks like a
closing one) goes on where it stopped. Logprobs come at the request's temperature from a server in the mode
`processed_logprobs`; where the draw was narrowed, and where given tokens are scored, they are read at temperature 1 and
brought to the temperature (tempering.py).

Not covered: limits of concurrency, and the adapters at the server (vllm.py).
"""

import asyncio
import hashlib
from collections.abc import Coroutine, Sequence
from typing import Final, TypeVar

from services.policy.contract import ProbeResult, ProveRequest, Sample, SampleRequest, ScoredItem
from services.policy.engines.base import TokenCounts
from services.policy.engines.base_probe import BaseProbe
from services.policy.engines.tempering import bound_normaliser
from services.policy.engines.vllm_client import DrawSettings, VllmClient, VllmRefused, VllmUnavailable
from services.policy.engines.work import compare_probe
from services.policy.model.modeling import LoadedPolicy
from services.policy.text.ends import StopFinder

SPARE_TOKENS: Final = 56
"""Likeliest tokens read beyond those requested: they measure the rest better than a difference does."""

MAX_NORMALISER_ERROR: Final = 2e-5
"""In nats. Where the likeliest tokens bound a temperature's normaliser less closely, the server is asked for it."""

MIN_TEMPERATURE: Final = 0.01
"""Below, vLLM draws at this temperature and says so in its log only."""

MAX_TEMPERATURE: Final = 2.0
"""Above, vLLM refuses. Given tokens are still scored where the likeliest tokens tell enough."""

R = TypeVar("R")


class VllmWork:
    """Draws and scores with any model the server holds; `model` is its name there. For one event loop."""

    def __init__(self, client: VllmClient, policy: LoadedPolicy, ends: StopFinder) -> None:
        self._vllm = client
        self._vocab_size = policy.vocab_size
        self._eos_token_ids = policy.eos_token_ids
        self._ends = ends
        self.tally = TokenCounts()

    async def draw_row(self, model: str, request: SampleRequest, prompt: list[int], seed: int, row: int) -> Sample:
        """Answer number `row` to a prompt. Raises VllmUnavailable, VllmRefused."""
        narrowed = request.temperature > 0 and (request.top_p < 1 or 0 < request.top_k < self._vocab_size)
        ids: list[int] = []
        logprobs: list[float] = []
        reason = None
        while reason is None:
            settings = DrawSettings(
                max_tokens=request.max_new_tokens - len(ids),
                temperature=request.temperature,
                seed=derive_seed(seed, row, len(ids)),
                top_p=request.top_p if narrowed else 1.0,
                top_k=request.top_k if narrowed else 0,
                stop=tuple(request.stop),
                stop_token_ids=self._eos_token_ids,
            )
            drawn = await self._vllm.draw(model, [*prompt, *ids], settings)
            if not drawn.token_ids:
                raise VllmUnavailable("the vLLM server ended an answer without a token")
            self.tally.prefilled += drawn.num_prompt_tokens - drawn.num_cached_tokens
            self.tally.reused += drawn.num_cached_tokens
            for token_id, logprob in zip(drawn.token_ids, drawn.logprobs, strict=True):
                ids.append(token_id)
                logprobs.append(logprob)
                reason = self._ends.find(ids, request.stop, request.max_new_tokens)
                if reason is not None:
                    break
        self.tally.sampled += len(ids)
        if narrowed:
            logprobs = (await self.score_tokens(model, prompt, ids, request.temperature)).logprobs
        return self._ends.make_sample(ids, logprobs, reason)

    async def score_tokens(
        self, model: str, prompt: list[int], response: list[int], temperature: float, top_k: int = 0
    ) -> ScoredItem:
        """A response's logprobs under the full softmax. Raises VllmUnavailable, VllmRefused."""
        width = top_k + SPARE_TOKENS if top_k or temperature != 1 else 0
        ids = [*prompt, *response]
        read = await self._vllm.read(model, ids, len(prompt), width if width < self._vocab_size else -1)
        self.tally.prefilled += len(ids)
        self.tally.scored += len(response)
        if width == 0:
            return ScoredItem(logprobs=[position.own for position in read])
        logprobs, top_logprobs, tails = [], [], []
        for number, position in enumerate(read):
            tops = position.top_logprobs
            bounds = bound_normaliser(tops, self._vocab_size, temperature)
            normaliser = 0.0 if temperature == 1 else bounds.middle
            if temperature != 1 and bounds.error > MAX_NORMALISER_ERROR:
                # The likeliest token's logprob at 1 and at the temperature: their difference is the normaliser.
                so_far = ids[: len(prompt) + number]
                normaliser = tops[0] / temperature - await self._vllm.read_likeliest(model, so_far, temperature)
            logprobs.append(position.own / temperature - normaliser)
            top_logprobs.append([one / temperature - normaliser for one in tops[:top_k]])
            tails.append(bounds.log_tail(normaliser, tops[top_k:], temperature))
        if top_k == 0:
            return ScoredItem(logprobs=logprobs)
        top_ids = [position.top_ids[:top_k] for position in read]
        return ScoredItem(logprobs=logprobs, top_token_ids=top_ids, top_logprobs=top_logprobs, tail_logmass=tails)

    async def compare(self, model: str, request: ProveRequest) -> ProbeResult:
        """How far the server's logprobs are from the expected ones."""
        scores = [
            self.score_tokens(model, item.prompt_token_ids, item.response_token_ids, request.temperature)
            for item in request.items
        ]
        return compare_probe(request, await gather(scores))

    async def check_base(self, model: str, probe: BaseProbe) -> None:
        """Pass when the server computes the base's logprobs and reports them after the temperature.

        Raises VllmRefused with the options to start it with.
        """
        # As wide as any request: a server that tells fewer logprobs says so now and not in mid-work.
        ids, width = [*probe.prompt, *probe.response], min(probe.width, self._vocab_size)
        read = await self._vllm.read(model, ids, len(probe.prompt), width)
        furthest = max(abs(one.own - expected) for one, expected in zip(read, probe.logprobs, strict=True))
        if furthest > probe.tolerance:
            raise VllmRefused(
                f"the vLLM server's base is not this policy's: its logprobs differ by {furthest:.3g} nats",
                hint="Start vLLM with the same model folder, and the policy with the --dtype that vLLM computes in.",
            )
        told = await self._vllm.read_likeliest(model, probe.prompt, probe.hot_temperature)
        if abs(told - probe.hot_likeliest) > probe.tolerance:
            raise VllmRefused(
                "the vLLM server reports logprobs before the temperature",
                hint="Start it with --logprobs-mode processed_logprobs.",
            )


def derive_seed(seed: int, row: int, position: int) -> int:
    """vLLM's seed for the tokens of a row from `position` on: 63 bits that depend on these three numbers only."""
    digest = hashlib.sha256(f"{seed}:{row}:{position}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def require_temperature(temperature: float) -> None:
    """Pass when vLLM draws at this temperature. Raises VllmRefused."""
    if temperature > MAX_TEMPERATURE or 0 < temperature < MIN_TEMPERATURE:
        raise VllmRefused(
            f"vLLM draws at temperature 0 or from {MIN_TEMPERATURE} to {MAX_TEMPERATURE}, not at {temperature}"
        )


async def gather(work: Sequence[Coroutine[None, None, R]]) -> list[R]:
    """All results in order; the first error cancels the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
