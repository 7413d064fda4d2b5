"""an expert is its registration, and an answer knows whether it counts and what it may quote

Revision: 20261130_trust
Follows: 20261122_words_have_authors

Our own experts are marked by the names that our installer has given them so far. Of the answers there are, those of
experts that may train now count. An answer may quote the metadata that its expert was granted; one of the second stage
was shown every earlier answer about its rollout, so it may quote what they may. Questions whose context is not made of
these answers any more lose it.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "20261130_trust"
down_revision = "20261122_words_have_authors"
branch_labels = None
depends_on = None

LIVE = sa.text("status <> 'retired'")
LIVE_STRANGERS = sa.text("status <> 'retired' AND own IS NULL")

IS_OWN = (
    "own IN ('execution', 'tool-call', 'exact-match', 'reference', 'reasoning-gym', 'self-evaluation', 'teacher', "
    "'human')"
)

OWN = """
UPDATE expert SET own = name WHERE trusted AND name IN
('execution', 'tool-call', 'exact-match', 'reference', 'reasoning-gym', 'self-evaluation', 'teacher', 'human')
"""

RETIRE_DOUBLES = """
UPDATE expert e SET status = 'retired', reason = 'another expert has its endpoint'
WHERE e.status <> 'retired' AND EXISTS (
    SELECT FROM expert o WHERE o.endpoint = e.endpoint AND o.status <> 'retired' AND o.id > e.id
)
"""

COUNT = """
UPDATE answer a SET could_train = false FROM expert e
WHERE e.id = a.expert_id AND NOT (
    e.weight > 0 AND (e.status = 'active' OR (e.status = 'quarantined' AND e.was_active))
)
"""

DERIVE_FIRST = """
UPDATE answer a SET derived_from = ARRAY(
    SELECT k FROM jsonb_object_keys(t.metadata) k
    WHERE k = ANY (e.granted) AND jsonb_exists(e.descriptor -> 'metadata_keys', k) ORDER BY k
)
FROM expert e, rollout r JOIN task t ON t.id = r.task_id
WHERE e.id = a.expert_id AND r.id = a.rollout_id AND cardinality(e.granted) > 0
"""

SHOW = """
UPDATE consultation q SET shown = ARRAY(
    SELECT a.id FROM answer a WHERE a.rollout_id = q.rollout_id AND a.consultation_id <> q.id
        AND a.distribution_kind IS NULL AND a.created_at <= q.created_at AND a.status = 'current' ORDER BY a.id
)
WHERE q.stage = 2
"""

UNMATCHED = """
UPDATE consultation SET shown = '{}', ask = jsonb_set(ask, '{context}', '[]')
WHERE stage = 2 AND cardinality(shown) <> jsonb_array_length(ask -> 'context')
"""

DERIVE_SECOND = """
UPDATE answer a SET derived_from = ARRAY(
    SELECT DISTINCT k FROM answer s, unnest(s.derived_from || a.derived_from) k WHERE s.id = ANY (q.shown) ORDER BY k
)
FROM consultation q WHERE q.id = a.consultation_id AND cardinality(q.shown) > 0
"""


def upgrade() -> None:
    """Make the change."""
    op.add_column("expert", sa.Column("own", sa.Text()))
    op.add_column("expert", sa.Column("looked_at", sa.DateTime(timezone=True)))
    op.execute(OWN)
    op.execute(RETIRE_DOUBLES)
    op.create_check_constraint(op.f("ck_expert_own"), "expert", IS_OWN)
    op.drop_index("uq_expert_live_name", table_name="expert")
    op.create_index("uq_expert_live_name", "expert", ["name"], unique=True, postgresql_where=LIVE_STRANGERS)
    op.create_index("uq_expert_live_endpoint", "expert", ["endpoint"], unique=True, postgresql_where=LIVE)
    op.create_index("uq_expert_live_own", "expert", ["own"], unique=True, postgresql_where=LIVE)
    op.add_column("consultation", sa.Column("shown", postgresql.ARRAY(sa.Uuid()), server_default="{}", nullable=False))
    op.add_column("answer", sa.Column("could_train", sa.Boolean(), server_default="true", nullable=False))
    op.add_column("answer", sa.Column("derived_from", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False))
    for change in (COUNT, DERIVE_FIRST, SHOW, DERIVE_SECOND, UNMATCHED):
        op.execute(change)


def downgrade() -> None:
    """Take the change back."""
    op.drop_column("answer", "derived_from")
    op.drop_column("answer", "could_train")
    op.drop_column("consultation", "shown")
    op.drop_index("uq_expert_live_own", table_name="expert")
    op.drop_index("uq_expert_live_endpoint", table_name="expert")
    op.drop_index("uq_expert_live_name", table_name="expert")
    op.create_index("uq_expert_live_name", "expert", ["name"], unique=True, postgresql_where=LIVE)
    op.drop_constraint(op.f("ck_expert_own"), "expert")
    op.drop_column("expert", "looked_at")
    op.drop_column("expert", "own")
