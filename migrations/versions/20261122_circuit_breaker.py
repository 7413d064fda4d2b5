"""when a quarantined expert is looked after again

Revision: 20261122_circuit_breaker
Follows: 20261122_list_filters
"""

import sqlalchemy as sa
from alembic import op

revision = "20261122_circuit_breaker"
down_revision = "20261122_list_filters"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change; experts in quarantine are looked after at once, and their questions wait as before."""
    op.add_column("expert", sa.Column("num_pauses", sa.Integer(), server_default="0", nullable=False))
    op.add_column("expert", sa.Column("retry_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("expert", sa.Column("was_active", sa.Boolean(), server_default="false", nullable=False))
    op.execute("UPDATE expert SET was_active = true WHERE status = 'quarantined'")


def downgrade() -> None:
    """Take the change back."""
    op.drop_column("expert", "was_active")
    op.drop_column("expert", "retry_at")
    op.drop_column("expert", "num_pauses")
