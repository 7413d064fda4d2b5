"""group sizes

Revision: 20261202_group_sizes
Follows: 20261201_what_teaches

How many train rollouts were planned of a task, for groups of several sizes, and when the last.
"""

from alembic import op

revision = "20261202_group_sizes"
down_revision = "20261201_what_teaches"
branch_labels = None
depends_on = None

COLUMN = """
ALTER TABLE task
    ADD COLUMN num_rollouts integer DEFAULT 0 NOT NULL,
    ADD COLUMN drawn_at timestamp with time zone;
UPDATE task SET num_rollouts = planned.num
FROM (
    SELECT task_id, sum(size) AS num FROM rollout_group WHERE purpose = 'train' AND NOT external GROUP BY task_id
) AS planned
WHERE planned.task_id = task.id;
DROP INDEX ix_task_draw;
CREATE INDEX ix_task_draw ON task (lineage_id, split, domain, num_rollouts, id);
"""


def upgrade() -> None:
    op.execute(COLUMN)
