"""no words of a person without the person, and everybody who skipped an item

Revision: 20261122_words_have_authors
Follows: 20261122_circuit_breaker

Erasing finds what a person wrote by the person. What lost its author before goes now: reasons of skipped items that
were asked for again, answers kept for repeated requests for such items, and corrections that were taken back but are
still shown in questions to experts.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "20261122_words_have_authors"
down_revision = "20261122_circuit_breaker"
branch_labels = None
depends_on = None

QUEUE = ["lineage_id", "priority", "disagreement", "uncertainty", "id"]
SKIPPED = sa.text("status = 'skipped'")

NAME_PEOPLE = """
UPDATE consultation q SET ask = replace(q.ask::text, e.id::text, e.name)::jsonb
FROM expert e WHERE e.name = 'human' AND q.stage = 2 AND q.ask::text LIKE '%' || e.id || '%'
"""

TAKE_OUT = """
UPDATE consultation q
SET ask = jsonb_set(q.ask, '{context}', jsonb_path_query_array(q.ask, '$.context[*] ? (@.expert != "human")'))
WHERE q.ask @> '{"context": [{"expert": "human"}]}' AND EXISTS (
    SELECT FROM answer a JOIN expert e ON e.id = a.expert_id
    WHERE a.rollout_id = q.rollout_id AND a.status = 'withdrawn' AND e.name = 'human'
)
"""


def upgrade() -> None:
    """Make the change."""
    op.execute("UPDATE correction SET text = NULL, comment = NULL, skip_reason = NULL WHERE person_id IS NULL")
    op.create_check_constraint(
        op.f("ck_correction_words_have_an_author"),
        "correction",
        "person_id IS NOT NULL OR (text IS NULL AND comment IS NULL AND skip_reason IS NULL)",
    )
    op.execute("DELETE FROM idempotency WHERE route = 'POST /v1/corrections'")
    op.execute(NAME_PEOPLE)
    op.execute(TAKE_OUT)
    op.add_column(
        "correction", sa.Column("skipped_by", postgresql.ARRAY(sa.Uuid()), server_default="{}", nullable=False)
    )
    op.execute("UPDATE correction SET skipped_by = ARRAY[person_id] WHERE status = 'skipped' AND person_id IS NOT NULL")
    op.drop_index("ix_correction_skipped", table_name="correction")
    op.create_index("ix_correction_skipped", "correction", QUEUE, postgresql_where=SKIPPED)


def downgrade() -> None:
    """Take the change back."""
    op.drop_index("ix_correction_skipped", table_name="correction")
    op.create_index("ix_correction_skipped", "correction", ["lineage_id", "id"], postgresql_where=SKIPPED)
    op.drop_column("correction", "skipped_by")
    op.drop_constraint(op.f("ck_correction_words_have_an_author"), "correction")
