"""Exact counts of rows by status, without counting the rows.

Triggers write into `tally_change` how many rows each statement adds or takes away, in its transaction; `fold` moves
that into `tally`, one row per count. `read` gives the sum of both at one moment.

Nouns: task (kind: its domain; word: its split), rollout_group and rollout (kind: the purpose), consultation (kind: the
expert's id), lesson (kind: `late` or nothing), correction, and verdict: train rollouts that the policy itself drew and
that are judged (kind: the policy version, word: passed or failed).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import func, select, text, union_all
from sqlalchemy.orm import Session

from services.store.tables.housekeeping import TallyChangeRow, TallyRow

MAX_FOLDED = 50_000  # a second's worth; the rest waits for the next sweep

_FOLD = text(
    """
    WITH gone AS (
        DELETE FROM tally_change WHERE id IN (SELECT id FROM tally_change ORDER BY id LIMIT :most)
        RETURNING lineage_id, noun, kind, word, num
    )
    INSERT INTO tally SELECT lineage_id, noun, kind, word, sum(num) FROM gone GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
    ON CONFLICT (lineage_id, noun, kind, word) DO UPDATE SET num = tally.num + excluded.num
    """
)


@dataclass(frozen=True)
class RowCount:
    """How many rows of a noun have this kind and word."""

    kind: str
    word: str
    num: int


def read(
    session: Session, lineage_id: UUID, nouns: Sequence[str], kinds: Collection[str] | None = None
) -> dict[str, list[RowCount]]:
    """The counts of some nouns, of all kinds or only of these, without zeros."""
    parts = [
        select(table.noun, table.kind, table.word, table.num).where(
            table.lineage_id == lineage_id,
            table.noun.in_(nouns),
            *(() if kinds is None else (table.kind.in_(kinds),)),
        )
        for table in (TallyRow, TallyChangeRow)
    ]
    both = union_all(*parts).subquery()
    total = func.sum(both.c.num)
    rows = session.execute(
        select(both.c.noun, both.c.kind, both.c.word, total)
        .group_by(both.c.noun, both.c.kind, both.c.word)
        .having(total != 0)
        .order_by(both.c.noun, both.c.kind, both.c.word)
    )
    found: dict[str, list[RowCount]] = {noun: [] for noun in nouns}
    for noun, kind, word, num in rows:
        found[noun].append(RowCount(kind, word, int(num)))
    return found


def by_word(tallies: Sequence[RowCount], kind: str | None = None) -> dict[str, int]:
    """Totals by word, of one kind or of all."""
    totals: dict[str, int] = {}
    for tally in tallies:
        if kind is None or tally.kind == kind:
            totals[tally.word] = totals.get(tally.word, 0) + tally.num
    return totals


def by_kind(tallies: Sequence[RowCount]) -> Mapping[str, dict[str, int]]:
    """Totals by kind, each by word."""
    found: dict[str, dict[str, int]] = {}
    for tally in sorted(tallies, key=lambda one: one.kind):
        words = found.setdefault(tally.kind, {})
        words[tally.word] = words.get(tally.word, 0) + tally.num
    return found


def fold(session: Session) -> None:
    """Move changes into `tally`. Only the sweep does, which holds a lock."""
    session.execute(_FOLD, {"most": MAX_FOLDED})
