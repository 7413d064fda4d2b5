"""The text of every token, so that pages can show rollouts and answers without a tokenizer.

The trainer, which has the tokenizer, writes a vocabulary once; it is one compressed row of some hundred kilobytes.
"""

import json
from functools import lru_cache

import zstandard
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from services.store.tables.housekeeping import VocabularyRow


def add(session: Session, tokenizer_hash: str, texts: list[str]) -> None:
    """Keep the texts of a tokenizer's tokens, by id; those that are there already stay."""
    packed = zstandard.compress(json.dumps(texts, ensure_ascii=False).encode(), 3)
    statement = insert(VocabularyRow).values(tokenizer_hash=tokenizer_hash, packed=packed)
    session.execute(statement.on_conflict_do_nothing())


def is_known(session: Session, tokenizer_hash: str) -> bool:
    """Whether the texts of this tokenizer's tokens are kept."""
    found = select(VocabularyRow.tokenizer_hash).where(VocabularyRow.tokenizer_hash == tokenizer_hash)
    return session.scalar(found) is not None


def texts(session: Session, tokenizer_hash: str) -> tuple[str, ...]:
    """The texts by token id; empty where no trainer has written them yet."""
    packed = session.scalar(select(VocabularyRow.packed).where(VocabularyRow.tokenizer_hash == tokenizer_hash))
    return () if packed is None else _unpack(packed)


@lru_cache(maxsize=4)
def _unpack(packed: bytes) -> tuple[str, ...]:
    """Unpacking takes longer than reading the row, and the same few are read again and again."""
    return tuple(json.loads(zstandard.decompress(packed)))
