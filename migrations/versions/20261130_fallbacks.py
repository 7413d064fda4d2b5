"""where training fell back to the version that serves

Revision: 20261130_fallbacks
Follows: 20261130_trust
"""

import sqlalchemy as sa
from alembic import op

revision = "20261130_fallbacks"
down_revision = "20261130_trust"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change."""
    op.create_table(
        "fallback",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("lineage_id", sa.Uuid(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("version_update", sa.Integer(), nullable=False),
        sa.Column("after_update", sa.Integer(), nullable=False),
        sa.Column("checkpoint_sha256", sa.Text(), nullable=False),
        sa.Column("fresh_optimizer", sa.Boolean(), nullable=False),
        sa.Column("num_refused", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("version_update <= after_update", name=op.f("ck_fallback_goes_back")),
        sa.ForeignKeyConstraint(["lineage_id"], ["lineage.id"], name=op.f("fk_fallback_lineage_id_lineage")),
        sa.ForeignKeyConstraint(
            ["version_id"], ["policy_version.id"], name=op.f("fk_fallback_version_id_policy_version")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_fallback")),
    )
    op.create_index("ix_fallback_lineage_id", "fallback", ["lineage_id", "id"])
    op.add_column("update", sa.Column("fell_back_to", sa.Text(), nullable=True))


def downgrade() -> None:
    """Take the change back."""
    op.drop_column("update", "fell_back_to")
    op.drop_table("fallback")
