"""Packing expert distributions into one compressed column.

topk: u16 ids (u32 over 65,536 tokens) and half-precision log-probabilities, then the tail masses, zstd level 3.
samples: the contract's own JSON, zstd. Half precision costs at most .004 nat at |logprob| < 16.
"""

import numpy as np
import zstandard
from sqlalchemy.orm import Session

from services.contracts.answers import Distribution, SamplesDistribution, TopKDistribution
from services.store.models import AnswerRow, DistributionRow

_WIDE = b"\x04"
_NARROW = b"\x02"
_FLOOR = -6.0e4  # half precision ends at 65,504


def pack(distribution: Distribution) -> bytes:
    """The distribution as compressed bytes."""
    if isinstance(distribution, SamplesDistribution):
        return zstandard.compress(distribution.model_dump_json().encode(), 3)
    ids = np.asarray(distribution.token_ids, dtype=np.uint32)
    wide = bool(ids.max(initial=0) > 0xFFFF)
    raw = b"".join(
        (
            _WIDE if wide else _NARROW,
            (ids if wide else ids.astype(np.uint16)).tobytes(),
            np.maximum(np.asarray(distribution.logprobs), _FLOOR).astype(np.float16).tobytes(),
            np.asarray(distribution.tail_mass, dtype=np.float32).tobytes(),
        )
    )
    return zstandard.compress(raw, 3)


def unpack(row: DistributionRow) -> Distribution:
    """What was packed, to half precision."""
    raw = zstandard.decompress(row.packed)
    if row.kind == "samples":
        return SamplesDistribution.model_validate_json(raw)
    shape = (row.num_rows, row.width)
    count = row.num_rows * row.width
    id_type = np.dtype(np.uint32 if raw[:1] == _WIDE else np.uint16)
    at = 1
    ids = np.frombuffer(raw, id_type, count, at).reshape(shape)
    at += count * id_type.itemsize
    logprobs = np.frombuffer(raw, np.float16, count, at).reshape(shape).astype(np.float64)
    at += count * 2
    tail = np.frombuffer(raw, np.float32, row.num_rows, at).astype(np.float64)
    # Trusted: it was validated when it came in, and half precision may have moved its sum.
    return TopKDistribution.model_construct(
        kind="topk",
        tokenizer_hash=row.tokenizer_hash or "",
        temperature=row.temperature,
        token_ids=ids.tolist(),
        logprobs=logprobs.tolist(),
        tail_mass=tail.tolist(),
    )


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
