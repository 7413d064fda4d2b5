"""the turns of a rollout before the one that is judged, and the token at which that begins

Revision: 20261130_turns_of_rollouts
Follows: 20261130_fallbacks

What is stored already was read as one turn.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "20261130_turns_of_rollouts"
down_revision = "20261130_fallbacks"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change."""
    op.add_column("rollout", sa.Column("turns", postgresql.JSONB(), nullable=True))
    op.add_column("rollout", sa.Column("answer_start", sa.Integer(), server_default="0", nullable=False))


def downgrade() -> None:
    """Take it back."""
    op.drop_column("rollout", "answer_start")
    op.drop_column("rollout", "turns")
