"""What retention and the disk limits write down

Revision: 20261122_retention
Follows: 20261121_initial_schema
"""

import sqlalchemy as sa
from alembic import op

revision = "20261122_retention"
down_revision = "20261122_drafts_and_effects"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("loop", sa.Column("blocked_by", sa.Text(), nullable=True))
    op.add_column("policy_version", sa.Column("weights_deleted_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "retention",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("mark", sa.Uuid(), nullable=False),
        sa.Column("num_deleted", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("walked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_retention")),
    )


def downgrade() -> None:
    op.drop_table("retention")
    op.drop_column("policy_version", "weights_deleted_at")
    op.drop_column("loop", "blocked_by")
