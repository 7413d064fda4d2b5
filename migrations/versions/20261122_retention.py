"""What retention and the disk limits write down

Revision: 20261122_retention
Follows: 20261121_initial_schema
"""

import sqlalchemy as sa
from alembic import op

revision = "20261122_retention"
down_revision = "20261121_initial_schema"
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
    # without them every row that is deleted costs a walk through these tables
    op.create_index("ix_update_lesson_lesson_id", "update_lesson", ["lesson_id"])
    op.create_index("ix_lesson_answer_answer_id", "lesson_answer", ["answer_id"])
    op.create_index("ix_correction_rollout_id", "correction", ["rollout_id"])


def downgrade() -> None:
    op.drop_index("ix_correction_rollout_id", table_name="correction")
    op.drop_index("ix_lesson_answer_answer_id", table_name="lesson_answer")
    op.drop_index("ix_update_lesson_lesson_id", table_name="update_lesson")
    op.drop_table("retention")
    op.drop_column("policy_version", "weights_deleted_at")
    op.drop_column("loop", "blocked_by")
