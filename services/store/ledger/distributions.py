"""Packing expert distributions into one compressed column.

topk: u16 ids (u32 over 65,536 tokens) and half-precision log-probabilities, then the tail masses, zstd level 3.
samples: the contract's own JSON, zstd. Half precision costs at most .004 nat at |logprob| < 16.
"""

from dataclasses import dataclass

import numpy as np
import zstandard
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from services.contracts.answers import Distribution, SamplesDistribution, TopKDistribution
from services.store.tables.loop import AnswerRow, DistributionRow

_WIDE = b"\x04"
_NARROW = b"\x02"
_FLOOR = -6.0e4  # half precision ends at 65,504


@dataclass(frozen=True, eq=False)
class TopK:
    """The likeliest tokens at each of T places. Shapes: token_ids, logprobs [T, K]; tail_mass [T], in probability."""

    token_ids: NDArray[np.integer]
    logprobs: NDArray[np.floating]
    tail_mass: NDArray[np.floating]


def pack(distribution: Distribution) -> bytes:
    """The distribution as compressed bytes."""
    if isinstance(distribution, SamplesDistribution):
        return zstandard.compress(distribution.model_dump_json().encode(), 3)
    return pack_top_k(
        TopK(
            np.asarray(distribution.token_ids),
            np.asarray(distribution.logprobs),
            np.asarray(distribution.tail_mass),
        )
    )


def pack_top_k(top: TopK) -> bytes:
    """The likeliest tokens as compressed bytes."""
    ids = top.token_ids.astype(np.uint32)
    wide = bool(ids.max(initial=0) > 0xFFFF)
    raw = b"".join(
        (
            _WIDE if wide else _NARROW,
            (ids if wide else ids.astype(np.uint16)).tobytes(),
            np.maximum(top.logprobs, _FLOOR).astype(np.float16).tobytes(),
            top.tail_mass.astype(np.float32).tobytes(),
        )
    )
    return zstandard.compress(raw, 3)


def unpack(row: DistributionRow) -> Distribution:
    """The distribution, to half precision."""
    raw = zstandard.decompress(row.packed)
    if row.kind == "samples":
        return SamplesDistribution.model_validate_json(raw)
    top = _read_top_k(raw, row.num_rows, row.width)
    # Trusted: it was validated when it came in, and half precision may have moved its sum.
    return TopKDistribution.model_construct(
        kind="topk",
        tokenizer_hash=row.tokenizer_hash or "",
        temperature=row.temperature,
        token_ids=top.token_ids.tolist(),
        logprobs=top.logprobs.tolist(),
        tail_mass=top.tail_mass.tolist(),
    )


def unpack_top_k(packed: bytes, num_rows: int, width: int) -> TopK:
    """The top-k rows, to half precision."""
    return _read_top_k(zstandard.decompress(packed), num_rows, width)


def _read_top_k(raw: bytes, num_rows: int, width: int) -> TopK:
    count = num_rows * width
    id_type = np.dtype(np.uint32 if raw[:1] == _WIDE else np.uint16)
    at = 1
    ids = np.frombuffer(raw, id_type, count, at).reshape((num_rows, width))
    at += count * id_type.itemsize
    logprobs = np.frombuffer(raw, np.float16, count, at).reshape((num_rows, width)).astype(np.float64)
    at += count * 2
    return TopK(ids, logprobs, np.frombuffer(raw, np.float32, num_rows, at).astype(np.float64))


def add(session: Session, answer: AnswerRow, distribution: Distribution) -> DistributionRow:
    """Store an answer's distribution."""
    if isinstance(distribution, TopKDistribution):
        num_rows, width = len(distribution.token_ids), len(distribution.token_ids[0])
    else:
        num_rows, width = len(distribution.prefixes), max(len(row) for row in distribution.continuations)
    row = DistributionRow(
        answer_id=answer.id,
        kind=distribution.kind,
        tokenizer_hash=distribution.tokenizer_hash,
        temperature=distribution.temperature,
        num_rows=num_rows,
        width=width,
        packed=pack(distribution),
    )
    session.add(row)
    return row
