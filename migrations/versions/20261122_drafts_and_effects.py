"""the queue's order, drafts, taking back, and what became of corrections

Revision: 20261122_drafts_and_effects
Follows: 20261122_persons_and_audit
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "20261122_drafts_and_effects"
down_revision = "20261122_tallies_and_choices"
branch_labels = None
depends_on = None

ADDED_CHANGES = [
    ("consultation", "answered", "waiting"),
    ("correction", "submitted", "claimed"),
    ("correction_effect", "pending", "measured"),
    ("correction_effect", "pending", "gone"),
]


def upgrade() -> None:
    """Make the change."""
    op.add_column("correction", sa.Column("disagreement", sa.Float(), server_default="0", nullable=False))
    op.add_column("correction", sa.Column("uncertainty", sa.Float(), server_default="0", nullable=False))
    op.add_column("correction", sa.Column("skip_kind", sa.Text(), nullable=True))
    op.add_column("correction", sa.Column("held_until", sa.DateTime(timezone=True), nullable=True))
    op.drop_index("ix_correction_queue", table_name="correction")
    op.create_index(
        "ix_correction_queue",
        "correction",
        ["lineage_id", "priority", "disagreement", "uncertainty", "id"],
        unique=False,
        postgresql_where=sa.text("status = 'open'"),
    )
    op.create_index(
        "ix_correction_held", "correction", ["person_id"], unique=False, postgresql_where=sa.text("status = 'claimed'")
    )
    op.create_index(
        "ix_correction_skipped",
        "correction",
        ["lineage_id", "id"],
        unique=False,
        postgresql_where=sa.text("status = 'skipped'"),
    )
    op.create_index("ix_correction_decided", "correction", ["person_id", "decided_at", "id"], unique=False)
    op.create_index("ix_correction_rollout_id", "correction", ["rollout_id"], unique=False)
    op.add_column("update", sa.Column("effects_planned", sa.Boolean(), server_default="false", nullable=False))
    op.create_index(
        "ix_update_effects_due",
        "update",
        ["lineage_id", "number"],
        unique=False,
        postgresql_where=sa.text("status = 'applied' AND NOT effects_planned"),
    )
    op.create_index(
        "ix_update_lesson_terms",
        "update_lesson",
        ["terms"],
        unique=False,
        postgresql_using="gin",
        postgresql_ops={"terms": "jsonb_path_ops"},
    )
    op.create_table(
        "correction_draft",
        sa.Column("correction_id", sa.Uuid(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("spans", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("saved_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["correction_id"], ["correction.id"], name=op.f("fk_correction_draft_correction_id_correction")
        ),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name=op.f("fk_correction_draft_person_id_person")),
        sa.PrimaryKeyConstraint("correction_id", "person_id", name=op.f("pk_correction_draft")),
    )
    op.create_index("ix_correction_draft_person_id", "correction_draft", ["person_id", "saved_at"], unique=False)
    op.create_table(
        "correction_effect",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("correction_id", sa.Uuid(), nullable=False),
        sa.Column("update_id", sa.Uuid(), nullable=False),
        sa.Column("side", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("num_tokens", sa.Integer(), nullable=True),
        sa.Column("span_start", sa.Integer(), nullable=True),
        sa.Column("span_end", sa.Integer(), nullable=True),
        sa.Column("text_logprob", sa.Float(), nullable=True),
        sa.Column("span_logprob", sa.Float(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("measured_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("side IN ('before', 'after')", name=op.f("ck_correction_effect_side")),
        sa.CheckConstraint("status IN ('pending', 'measured', 'gone')", name=op.f("ck_correction_effect_status")),
        sa.CheckConstraint(
            "status <> 'gone' OR reason IS NOT NULL", name=op.f("ck_correction_effect_gone_has_a_reason")
        ),
        sa.CheckConstraint(
            "status <> 'measured' OR text_logprob IS NOT NULL", name=op.f("ck_correction_effect_measured_has_logprobs")
        ),
        sa.ForeignKeyConstraint(
            ["correction_id"], ["correction.id"], name=op.f("fk_correction_effect_correction_id_correction")
        ),
        sa.ForeignKeyConstraint(["update_id"], ["update.id"], name=op.f("fk_correction_effect_update_id_update")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_correction_effect")),
        sa.UniqueConstraint(
            "correction_id", "update_id", "side", name=op.f("uq_correction_effect_correction_id_update_id_side")
        ),
    )
    op.create_index(
        "ix_correction_effect_work",
        "correction_effect",
        ["not_before"],
        unique=False,
        postgresql_where=sa.text("status = 'pending'"),
    )
    changes = sa.table("status_change", sa.column("noun"), sa.column("old"), sa.column("new"))
    op.bulk_insert(changes, [{"noun": noun, "old": old, "new": new} for noun, old, new in ADDED_CHANGES])
    op.execute(
        "CREATE TRIGGER correction_effect_status_change BEFORE UPDATE OF status ON correction_effect "
        "FOR EACH ROW EXECUTE FUNCTION check_status_change()"
    )


def downgrade() -> None:
    """Take the change back."""
    op.drop_table("correction_effect")
    op.drop_table("correction_draft")
    changes = sa.table("status_change", sa.column("noun"), sa.column("old"), sa.column("new"))
    for noun, old, new in ADDED_CHANGES:
        op.execute(sa.delete(changes).where(changes.c.noun == noun, changes.c.old == old, changes.c.new == new))
    op.drop_index("ix_update_lesson_terms", table_name="update_lesson", postgresql_using="gin")
    op.drop_index("ix_update_effects_due", table_name="update")
    op.drop_column("update", "effects_planned")
    op.drop_index("ix_correction_rollout_id", table_name="correction")
    op.drop_index("ix_correction_decided", table_name="correction")
    op.drop_index("ix_correction_skipped", table_name="correction")
    op.drop_index("ix_correction_held", table_name="correction")
    op.drop_index("ix_correction_queue", table_name="correction")
    op.create_index("ix_correction_queue", "correction", ["status", "priority", "id"], unique=False)
    op.drop_column("correction", "held_until")
    op.drop_column("correction", "skip_kind")
    op.drop_column("correction", "uncertainty")
    op.drop_column("correction", "disagreement")
