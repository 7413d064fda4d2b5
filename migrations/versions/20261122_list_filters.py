"""an expert's questions by status, at any number of them

Revision: 20261122_list_filters
Follows: 20261122_tallies_and_choices

A status that hardly any of an expert's questions has would otherwise be looked for in all of them: a second at a
million.
"""

from alembic import op

revision = "20261122_list_filters"
down_revision = "20261122_retention"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change."""
    op.create_index("ix_consultation_expert_status", "consultation", ["expert_id", "status", "id"])


def downgrade() -> None:
    """Take the change back."""
    op.drop_index("ix_consultation_expert_status", table_name="consultation")
