# ruff: noqa: S608 -- the statements are put together of the words below
"""what pages read: tallies of statuses, the teacher's choices, indexes

Revision: 20261122_tallies_and_choices
Follows: 20261122_persons_and_audit

Counting a table of a million rows takes a tenth of a second, and a page asks every second. So every change of a status
writes down what it added and took away, in its own transaction, as rows of its own: two transactions never wait for
each other. The maintenance task folds them into one row a figure. A tally is the sum of both, and exact.
"""

import sqlalchemy as sa
from alembic import op

revision = "20261122_tallies_and_choices"
down_revision = "20261122_persons_and_audit"
branch_labels = None
depends_on = None

WHAT = {
    "task": ("domain", "split"),
    "rollout_group": ("purpose", "status"),
    "rollout": ("purpose", "status"),
    "consultation": ("expert_id::text", "status"),
    "lesson": ("CASE WHEN late THEN 'late' ELSE '' END", "status"),
    "correction": ("''", "status"),
}
"""By table: what its rows are counted by, and the word that changes."""

VERDICT = "coalesce(policy_version, '')", "CASE WHEN score > 0.5 THEN 'passed' ELSE 'failed' END"
JUDGED = "score IS NOT NULL AND purpose = 'train'"


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


def _watch(table: str, noun: str, kind: str, word: str, when: str, column: str) -> None:
    """Statements that add or delete rows write one row a figure; a changed row writes two, and only if it changed."""
    added = f"SELECT new_rows.*, 1 AS step FROM new_rows WHERE {when}"
    deleted = f"SELECT old_rows.*, -1 AS step FROM old_rows WHERE {when}"
    op.execute(_function(f"tally_{noun}_added", noun, kind, word, added))
    op.execute(_function(f"tally_{noun}_deleted", noun, kind, word, deleted))
    changed = f"SELECT OLD.*, -1 AS step WHERE {_of(when, 'OLD')} UNION ALL SELECT NEW.*, 1 WHERE {_of(when, 'NEW')}"
    op.execute(_function(f"tally_{noun}_changed", noun, kind, word, changed))
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


def upgrade() -> None:
    """Make the change."""
    op.create_table(
        "tally",
        sa.Column("lineage_id", sa.Uuid(), nullable=False),
        sa.Column("noun", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("word", sa.Text(), nullable=False),
        sa.Column("num", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("lineage_id", "noun", "kind", "word", name=op.f("pk_tally")),
    )
    op.create_table(
        "tally_change",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("lineage_id", sa.Uuid(), nullable=False),
        sa.Column("noun", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("word", sa.Text(), nullable=False),
        sa.Column("num", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tally_change")),
    )
    # Rows live for a second: the table must not fill with dead ones.
    op.execute("ALTER TABLE tally_change SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000)")
    for table, (kind, word) in WHAT.items():
        _watch(table, table, kind, word, "true", word)
        op.execute(
            f"INSERT INTO tally SELECT lineage_id, '{table}', {kind}, {word}, count(*) FROM {table} GROUP BY 1, 3, 4"
        )
    _watch("rollout", "verdict", *VERDICT, JUDGED, "score")
    op.execute(
        f"INSERT INTO tally SELECT lineage_id, 'verdict', {VERDICT[0]}, {VERDICT[1]}, count(*) FROM rollout "
        f"WHERE {JUDGED} GROUP BY 1, 3, 4"
    )
    op.create_table(
        "teacher_choices",
        sa.Column("update_id", sa.Uuid(), nullable=False),
        sa.Column("lesson_id", sa.Uuid(), nullable=False),
        sa.Column("num_rows", sa.Integer(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["update_id", "lesson_id"],
            ["update_lesson.update_id", "update_lesson.lesson_id"],
            name=op.f("fk_teacher_choices_update_id_lesson_id_update_lesson"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("update_id", "lesson_id", name=op.f("pk_teacher_choices")),
    )
    op.execute("ALTER TABLE teacher_choices ALTER COLUMN packed SET STORAGE EXTERNAL")  # it is zstd already
    op.create_table(
        "vocabulary",
        sa.Column("tokenizer_hash", sa.Text(), nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("tokenizer_hash", name=op.f("pk_vocabulary")),
    )
    op.execute("ALTER TABLE vocabulary ALTER COLUMN packed SET STORAGE EXTERNAL")
    op.create_index("ix_rollout_purpose", "rollout", ["lineage_id", "purpose", "id"])
    op.create_index("ix_rollout_policy_version", "rollout", ["lineage_id", "policy_version", "id"])
    op.create_index(
        "ix_rollout_set_aside", "rollout", ["lineage_id", "id"], postgresql_where=sa.text("status = 'set_aside'")
    )
    op.create_index("ix_answer_expert_id", "answer", ["expert_id", "id"])
    op.create_index(
        "ix_consultation_dead", "consultation", ["lineage_id", "id"], postgresql_where=sa.text("status = 'dead'")
    )
    op.create_index(
        "ix_rollout_group_dead", "rollout_group", ["lineage_id", "id"], postgresql_where=sa.text("status = 'dead'")
    )
    op.create_index("ix_lesson_answer_answer_id", "lesson_answer", ["answer_id"])
    op.create_index("ix_update_lesson_lesson_id", "update_lesson", ["lesson_id"])


def downgrade() -> None:
    """Take the change back."""
    op.drop_index("ix_update_lesson_lesson_id", table_name="update_lesson")
    op.drop_index("ix_lesson_answer_answer_id", table_name="lesson_answer")
    op.drop_index("ix_rollout_group_dead", table_name="rollout_group", postgresql_where=sa.text("status = 'dead'"))
    op.drop_index("ix_consultation_dead", table_name="consultation", postgresql_where=sa.text("status = 'dead'"))
    op.drop_index("ix_answer_expert_id", table_name="answer")
    op.drop_index("ix_rollout_set_aside", table_name="rollout", postgresql_where=sa.text("status = 'set_aside'"))
    op.drop_index("ix_rollout_policy_version", table_name="rollout")
    op.drop_index("ix_rollout_purpose", table_name="rollout")
    op.drop_table("vocabulary")
    op.drop_table("teacher_choices")
    for noun, table in {**{table: table for table in WHAT}, "verdict": "rollout"}.items():
        for change in ("added", "deleted", "changed"):
            op.execute(f'DROP TRIGGER tally_{noun}_{change} ON "{table}"')
            op.execute(f"DROP FUNCTION tally_{noun}_{change}")
    op.drop_table("tally_change")
    op.drop_table("tally")
