# ruff: noqa: S608 -- the statements are put together of the words below
"""initial schema

Revision: 20261130_initial_schema
Follows: None

The database itself keeps three things: a status changes only as `status_change` allows; the audit trail is not
changed or deleted; `tally` and `tally_change` count rows by status, so that no page has to.
"""

from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "20261130_initial_schema"
down_revision = None
branch_labels = None
depends_on = None

TABLES = Path(__file__).parent / revision
ROOMS = ("lineages", "people", "loop", "ledger", "corrections", "housekeeping")
"""In the order in which their tables refer to each other."""

STATUS_CHANGES = {
    "rollout_group": {
        "pending": ["asked", "dead"],
        "asked": ["dead", "pending", "sampled"],
        "dead": ["pending"],
    },
    "rollout": {
        "open": ["ready", "set_aside"],
        "ready": ["set_aside"],
    },
    "expert": {
        "probation": ["active", "paused", "quarantined", "retired"],
        "active": ["paused", "probation", "quarantined", "retired"],
        "paused": ["active", "probation", "retired"],
        "quarantined": ["probation", "retired"],
    },
    "consultation": {
        "pending": ["asked", "dead"],
        "asked": ["abstained", "answered", "dead", "invalid", "pending", "waiting"],
        "waiting": ["abstained", "answered", "dead", "invalid"],
        "answered": ["waiting"],
        "dead": ["pending"],
    },
    "answer": {
        "current": ["withdrawn"],
    },
    "correction": {
        "open": ["claimed", "withdrawn"],
        "claimed": ["open", "skipped", "submitted", "withdrawn"],
        "submitted": ["claimed", "withdrawn"],
        "skipped": ["open", "withdrawn"],
        "withdrawn": ["open"],
    },
    "correction_effect": {
        "pending": ["gone", "measured"],
    },
    "lesson": {
        "open": ["ready", "set_aside", "withdrawn"],
        "ready": ["claimed", "set_aside", "withdrawn"],
        "claimed": ["invalid", "ready", "set_aside", "used", "withdrawn"],
        "used": ["ready", "withdrawn"],
        "set_aside": ["withdrawn"],
        "invalid": ["withdrawn"],
    },
    "update": {
        "started": ["abandoned", "applied"],
        "applied": ["undone"],
    },
    "policy_version": {
        "candidate": ["rejected", "serving", "withdrawn"],
        "serving": ["superseded", "withdrawn"],
        "superseded": ["serving", "withdrawn"],
        "rejected": ["withdrawn"],
    },
    "evaluation": {
        "running": ["abandoned", "done"],
    },
}

CHECK_STATUS_CHANGE = """
CREATE FUNCTION check_status_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status IS DISTINCT FROM OLD.status AND NOT EXISTS (
        SELECT FROM status_change c WHERE c.noun = TG_TABLE_NAME AND c.old = OLD.status AND c.new = NEW.status
    ) THEN
        RAISE EXCEPTION '% cannot change from % to %', TG_TABLE_NAME, OLD.status, NEW.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'status_change';
    END IF;
    RETURN NEW;
END $$
"""

KEEP_AUDIT = """
CREATE FUNCTION keep_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.address IS NULL THEN
        NEW.address := OLD.address;
        IF NEW IS NOT DISTINCT FROM OLD THEN
            NEW.address := NULL;
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'the audit trail is append-only' USING ERRCODE = 'insufficient_privilege';
END $$
"""

COUNTED = {
    "task": ("domain", "split"),
    "rollout_group": ("purpose", "status"),
    "rollout": ("purpose", "status"),
    "consultation": ("expert_id::text", "status"),
    "lesson": ("CASE WHEN late THEN 'late' ELSE '' END", "status"),
    "correction": ("''", "status"),
}
"""By table: the kind its rows are counted by, and the word that changes."""

VERDICT = "coalesce(policy_version, '')", "CASE WHEN score > 0.5 THEN 'passed' ELSE 'failed' END"
JUDGED = "score IS NOT NULL AND purpose = 'train'"


def upgrade() -> None:
    """Create every table, then the triggers."""
    for room in ROOMS:
        op.execute((TABLES / f"{room}.sql").read_text())
    _guard_statuses()
    _guard_audit()
    _count_rows()


def _guard_statuses() -> None:
    """Allow only the changes of a status that `status_change` lists."""
    columns = [sa.column(name, sa.Text()) for name in ("noun", "old", "new")]
    op.bulk_insert(sa.table("status_change", *columns), list(_list_changes()))
    op.execute(CHECK_STATUS_CHANGE)
    for noun in STATUS_CHANGES:
        op.execute(
            f'CREATE TRIGGER {noun}_status_change BEFORE UPDATE OF status ON "{noun}" '
            "FOR EACH ROW EXECUTE FUNCTION check_status_change()"
        )


def _list_changes() -> Iterator[dict[str, str]]:
    for noun, changes in STATUS_CHANGES.items():
        for old, news in changes.items():
            for new in news:
                yield {"noun": noun, "old": old, "new": new}


def _guard_audit() -> None:
    """Refuse changes to the audit trail."""
    op.execute(KEEP_AUDIT)
    op.execute(
        "CREATE TRIGGER audit_is_kept BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION keep_audit()"
    )
    op.execute(
        "CREATE TRIGGER audit_is_not_emptied BEFORE TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION keep_audit()"
    )


def _count_rows() -> None:
    """Record how many rows each statement adds to a count or takes away, in rows of its own.

    Counting a million rows takes a tenth of a second, and pages ask every second. The rows are new ones because two
    transactions that raise one number wait for each other; the sweep folds them into `tally`.
    """
    for table, (kind, word) in COUNTED.items():
        _count(table, table, kind, word, "true", word)
    _count("rollout", "verdict", *VERDICT, JUDGED, "score")


def _count(table: str, noun: str, kind: str, word: str, when: str, column: str) -> None:
    """Statements that add or delete rows write one row per count; a changed row writes two, and only if it changed."""
    added = f"SELECT new_rows.*, 1 AS step FROM new_rows WHERE {when}"
    deleted = f"SELECT old_rows.*, -1 AS step FROM old_rows WHERE {when}"
    changed = f"SELECT OLD.*, -1 AS step WHERE {_of(when, 'OLD')} UNION ALL SELECT NEW.*, 1 WHERE {_of(when, 'NEW')}"
    for name, rows in (("added", added), ("deleted", deleted), ("changed", changed)):
        op.execute(_function(f"tally_{noun}_{name}", noun, kind, word, rows))
    op.execute(
        f'CREATE TRIGGER tally_{noun}_added AFTER INSERT ON "{table}" REFERENCING NEW TABLE AS new_rows '
        f"FOR EACH STATEMENT EXECUTE FUNCTION tally_{noun}_added()"
    )
    op.execute(
        f'CREATE TRIGGER tally_{noun}_deleted AFTER DELETE ON "{table}" REFERENCING OLD TABLE AS old_rows '
        f"FOR EACH STATEMENT EXECUTE FUNCTION tally_{noun}_deleted()"
    )
    op.execute(
        f'CREATE TRIGGER tally_{noun}_changed AFTER UPDATE OF {column} ON "{table}" FOR EACH ROW '
        f"WHEN (OLD.{column} IS DISTINCT FROM NEW.{column}) EXECUTE FUNCTION tally_{noun}_changed()"
    )


def _of(when: str, row: str) -> str:
    return when.replace("score", f"{row}.score").replace("purpose", f"{row}.purpose")


def _function(name: str, noun: str, kind: str, word: str, rows: str) -> str:
    return f"""
CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tally_change (lineage_id, noun, kind, word, num)
    SELECT lineage_id, '{noun}', {kind}, {word}, sum(step) FROM ({rows}) AS changed
    GROUP BY 1, 3, 4 HAVING sum(step) <> 0;
    RETURN NULL;
END $$
"""
