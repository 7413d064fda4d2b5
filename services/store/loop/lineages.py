"""Lineages: one model being trained."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.runtime.errors import Conflict, NotFound
from services.store.tables.base import LineageRow
from services.store.tables.ledger import PolicyVersionRow
from services.store.tables.loop import LoopRow

BASE_VERSION = "base"


class LineageNotFound(NotFound):
    """No lineage of that name: the stack was never started with this database."""


class LineageModelDiffers(Conflict):
    """The lineage was begun with another model, whose rows do not fit this one."""


def get(session: Session, name: str) -> LineageRow:
    """The lineage. Errors: LineageNotFound."""
    row = session.scalar(select(LineageRow).where(LineageRow.name == name))
    if row is None:
        raise LineageNotFound(f"no lineage named {name!r}", hint="Start the stack once with `preceptor up`.")
    return row


def ensure(
    session: Session,
    name: str,
    model: str,
    base_sha256: str,
    tokenizer_hash: str,
    vocab_size: int,
    *,
    former_sha256: str | None = None,
) -> LineageRow:
    """The lineage, made with its base as policy version 0 when it is new.

    former_sha256: how an earlier release identified this base; a lineage that names it so gets the present hash.
    Errors: LineageModelDiffers when it exists with other weights or another tokenizer.
    """
    row = session.scalar(select(LineageRow).where(LineageRow.name == name))
    if row is not None:
        if row.base_sha256 == former_sha256:
            row.base_sha256 = base_sha256
        if (row.base_sha256, row.tokenizer_hash) != (base_sha256, tokenizer_hash):
            raise LineageModelDiffers(
                f"lineage {name!r} was begun with the weights {row.base_sha256[:12]}…, not {base_sha256[:12]}…",
                hint="Use another data folder, or set PRECEPTOR_LINEAGE to a new name, to train another model.",
            )
        return row
    row = LineageRow(
        name=name, model=model, base_sha256=base_sha256, tokenizer_hash=tokenizer_hash, vocab_size=vocab_size
    )
    session.add(row)
    session.flush()
    session.add(LoopRow(lineage_id=row.id))
    base = PolicyVersionRow(lineage_id=row.id, number=0, name=BASE_VERSION, status="candidate")
    session.add(base)
    session.flush()
    base.status = "serving"
    session.flush()
    return row
