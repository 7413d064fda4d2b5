"""Rollouts, sent as clients would: so many at once by the single route, or in batches."""

import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import uuid4

import aiohttp

from benchmarks.api.policy import TOKENIZER, VOCAB
from benchmarks.api.stage import Stage
from services.contracts.base import JsonObject

NUM_TOKENS = 256
GROUP_SIZE = 8


@dataclass(frozen=True)
class Load:
    """How rollouts are sent."""

    name: str
    path: str
    at_once: int
    batch: int = 0
    """Rollouts a request; 0 for the routes that take one."""


@dataclass(frozen=True)
class Cost:
    """What a rollout costs: processor microseconds by process, and what its sender waits."""

    load: Load
    num_experts: int
    num_rollouts: int
    api_us: float
    postgres_us: float
    policy_us: float
    wall_seconds: float
    p50_ms: float
    p95_ms: float

    @property
    def rollouts_per_api_core(self) -> float:
        """How many one core takes a second when it does nothing but run the api process."""
        return 1e6 / self.api_us

    @property
    def rollouts_per_core(self) -> float:
        """The same when Postgres runs on that core too."""
        return 1e6 / (self.api_us + self.postgres_us)


def make_rollout(stage: Stage, rng: random.Random) -> JsonObject:
    """A rollout of 256 tokens with its logprobs: some 3.7 KB of JSON."""
    return {
        "task_id": str(rng.choice(stage.task_ids)),
        "token_ids": [rng.randrange(VOCAB) for _ in range(NUM_TOKENS)],
        "sampler_logprobs": [round(-rng.expovariate(2.0), 4) for _ in range(NUM_TOKENS)],
        "tokenizer_hash": TOKENIZER,
        "sampling": {"temperature": 1.0, "max_new_tokens": NUM_TOKENS},
        "policy_version": "base",
    }


def measure(stage: Stage, load: Load, num_experts: int, num_rollouts: int) -> Cost:
    """Send some rollouts for nothing, then the ones that count."""
    rng = random.Random(0)
    pool = [make_rollout(stage, rng) for _ in range(400)]
    bodies = _make_batches(pool, load.batch) if load.batch else [_dump(one) for one in pool]
    num_requests = num_rollouts // max(load.batch, 1)
    asyncio.run(_send(stage, load, bodies, max(num_requests // 5, 2)))
    before, began = stage.read_cpu(), time.monotonic()
    waits = asyncio.run(_send(stage, load, bodies, num_requests))
    used, wall = stage.read_cpu() - before, time.monotonic() - began
    sent = num_requests * max(load.batch, 1)
    cuts = statistics.quantiles(waits, n=20)
    return Cost(
        load=load,
        num_experts=num_experts,
        num_rollouts=sent,
        api_us=used.api / sent * 1e6,
        postgres_us=used.postgres / sent * 1e6,
        policy_us=used.policy / sent * 1e6,
        wall_seconds=wall,
        p50_ms=cuts[9] * 1e3,
        p95_ms=cuts[18] * 1e3,
    )


def _make_batches(pool: list[JsonObject], size: int) -> list[bytes]:
    """Batches of groups of siblings."""
    batches = []
    for start in range(0, len(pool) - size + 1, size):
        rows = [
            pool[start + number]
            | {"task_id": pool[start + number - number % GROUP_SIZE]["task_id"], "group": str(number // GROUP_SIZE)}
            for number in range(size)
        ]
        batches.append(_dump({"rollouts": list(rows)}))
    return batches


def _dump(value: JsonObject) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


async def _send(stage: Stage, load: Load, bodies: list[bytes], num_requests: int) -> list[float]:
    waits: list[float] = []
    numbers = iter(range(num_requests))
    headers = {"Authorization": f"Bearer {stage.key}", "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(stage.url, headers=headers, connector=connector, timeout=timeout) as http:
        senders = [_send_some(http, load, bodies, numbers, waits) for _ in range(load.at_once)]
        await asyncio.gather(*senders)
    return waits


async def _send_some(
    http: aiohttp.ClientSession, load: Load, bodies: list[bytes], numbers: Iterator[int], waits: list[float]
) -> None:
    for number in numbers:
        began = time.monotonic()
        key = {"Idempotency-Key": uuid4().hex}
        async with http.post(load.path, data=bodies[number % len(bodies)], headers=key) as response:
            answer = await response.read()
            if response.status not in (200, 201) or (load.batch and b'"num_refused":0' not in answer):
                raise RuntimeError(f"{load.path}: {response.status}: {answer[:500].decode()}")
        waits.append(time.monotonic() - began)


Report = Callable[[Cost], None]
