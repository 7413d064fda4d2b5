"""what teaches

Revision: 20261201_what_teaches
Follows: 20261130_initial_schema

Draws after a context (probes of what a source teaches, and the share of a group that a teacher draws), precedents in
answers, measurements of every source, and scouts of tasks.
"""

import sqlalchemy as sa
from alembic import op

revision = "20261201_what_teaches"
down_revision = "20261130_initial_schema"
branch_labels = None
depends_on = None

COLUMNS = """
ALTER TABLE rollout_group
    ADD COLUMN context jsonb,
    ADD COLUMN num_shown integer DEFAULT 0 NOT NULL,
    ADD CONSTRAINT ck_rollout_group_num_shown_range CHECK (num_shown BETWEEN 0 AND size),
    ADD CONSTRAINT ck_rollout_group_shown_has_a_context CHECK (num_shown = 0 OR context IS NOT NULL),
    ADD CONSTRAINT ck_rollout_group_contexts_are_train_only CHECK (num_shown = 0 OR split = 'train'),
    DROP CONSTRAINT ck_rollout_group_purpose,
    ADD CONSTRAINT ck_rollout_group_purpose CHECK (purpose IN ('train', 'evaluation', 'probe', 'scout', 'chat'));
CREATE INDEX ix_rollout_group_shown_answers ON rollout_group USING gin ((context -> 'answers'))
    WHERE context IS NOT NULL;
ALTER TABLE rollout
    ADD COLUMN shown boolean DEFAULT false NOT NULL,
    ADD CONSTRAINT ck_rollout_shown_has_no_logprobs CHECK (NOT shown OR sampler_logprobs IS NULL),
    DROP CONSTRAINT ck_rollout_purpose,
    ADD CONSTRAINT ck_rollout_purpose CHECK (purpose IN ('train', 'evaluation', 'probe', 'scout', 'chat'));
CREATE INDEX ix_rollout_success ON rollout (task_id, id) WHERE purpose = 'train' AND NOT shown AND score > 0.5;
CREATE INDEX ix_correction_submitted ON correction (lineage_id, id) WHERE status = 'submitted';
ALTER TABLE answer
    ADD COLUMN precedents jsonb,
    ADD CONSTRAINT ck_answer_precedents_are_train_only CHECK (precedents IS NULL OR split = 'train');
ALTER TABLE task
    ADD CONSTRAINT ck_task_precedents_are_train_only
        CHECK (split = 'train' OR NOT jsonb_exists(metadata, 'precedents'));
CREATE INDEX ix_task_question
    ON task (lineage_id, md5(jsonb_path_query_array(messages, '$[*] ? (@.role != "system")')::text));
ALTER TABLE expert
    ADD COLUMN num_places integer DEFAULT 8 NOT NULL,
    ADD COLUMN num_samples integer DEFAULT 2 NOT NULL,
    DROP CONSTRAINT ck_expert_own,
    ADD CONSTRAINT ck_expert_own CHECK (own IN ('execution', 'tool-call', 'exact-match', 'reference', 'precedents',
        'reasoning-gym', 'self-evaluation', 'teacher', 'human'));
"""

GAP_PROBES = """
UPDATE rollout SET shown = true, sampler_logprobs = NULL
    FROM rollout_group WHERE rollout_group.id = rollout.group_id
    AND jsonb_exists(rollout_group.sampling, 'shown_solution');
UPDATE rollout_group SET sampling = sampling - 'shown_solution' WHERE jsonb_exists(sampling, 'shown_solution');
UPDATE rollout_group SET evaluation_id = NULL, status = 'dead', reason = 'measurements took the place of gap probes'
    FROM evaluation WHERE evaluation.id = rollout_group.evaluation_id AND evaluation.split = 'train'
    AND rollout_group.status = 'pending';
UPDATE rollout_group SET evaluation_id = NULL
    FROM evaluation WHERE evaluation.id = rollout_group.evaluation_id AND evaluation.split = 'train';
DELETE FROM evaluation WHERE split = 'train';
ALTER TABLE evaluation
    DROP CONSTRAINT ck_evaluation_not_on_train,
    ADD CONSTRAINT ck_evaluation_not_on_train CHECK (split <> 'train');
"""

TABLES = """
CREATE TABLE measurement (
    id uuid NOT NULL,
    lineage_id uuid NOT NULL,
    expert_id uuid NOT NULL,
    source text NOT NULL,
    template text NOT NULL,
    domain text NOT NULL,
    policy_version text NOT NULL,
    temperature double precision NOT NULL,
    asked_until timestamp with time zone,
    status text NOT NULL,
    reason text,
    num_looks integer DEFAULT 0 NOT NULL,
    num_tasks integer DEFAULT 0 NOT NULL,
    num_tokens integer DEFAULT 0 NOT NULL,
    gap double precision,
    gap_low double precision,
    gap_high double precision,
    net double precision,
    net_low double precision,
    net_high double precision,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    decided_at timestamp with time zone,
    CONSTRAINT pk_measurement PRIMARY KEY (id),
    CONSTRAINT fk_measurement_lineage_id_lineage FOREIGN KEY (lineage_id) REFERENCES lineage (id),
    CONSTRAINT fk_measurement_expert_id_expert FOREIGN KEY (expert_id) REFERENCES expert (id),
    CONSTRAINT ck_measurement_status CHECK (status IN ('measuring', 'teaches', 'does_not_teach', 'abandoned',
        'lapsed')),
    CONSTRAINT ck_measurement_source CHECK (source IN ('own_success', 'correction', 'solution', 'precedents',
        'reference', 'feedback', 'distribution', 'nothing')),
    CONSTRAINT ck_measurement_template CHECK (template IN ('turns', 'reprompt')),
    CONSTRAINT ck_measurement_decided CHECK ((status = 'measuring') = (decided_at IS NULL))
);
CREATE UNIQUE INDEX uq_measurement_under_way ON measurement (expert_id, source, template, domain)
    WHERE status = 'measuring';
CREATE INDEX ix_measurement_newest ON measurement (lineage_id, expert_id, source, template, domain, id);
CREATE TABLE measured_task (
    measurement_id uuid NOT NULL,
    task_id uuid NOT NULL,
    num_sharing integer DEFAULT 1 NOT NULL,
    student_group_id uuid NOT NULL,
    teacher_group_id uuid,
    control_group_id uuid,
    CONSTRAINT pk_measured_task PRIMARY KEY (measurement_id, task_id),
    CONSTRAINT fk_measured_task_measurement_id_measurement FOREIGN KEY (measurement_id) REFERENCES measurement (id),
    CONSTRAINT fk_measured_task_task_id_task FOREIGN KEY (task_id) REFERENCES task (id),
    CONSTRAINT fk_measured_task_student_group_id_rollout_group FOREIGN KEY (student_group_id)
        REFERENCES rollout_group (id),
    CONSTRAINT fk_measured_task_teacher_group_id_rollout_group FOREIGN KEY (teacher_group_id)
        REFERENCES rollout_group (id),
    CONSTRAINT fk_measured_task_control_group_id_rollout_group FOREIGN KEY (control_group_id)
        REFERENCES rollout_group (id)
);
CREATE INDEX ix_measured_task_student ON measured_task (student_group_id);
CREATE INDEX ix_measured_task_teacher ON measured_task (teacher_group_id);
CREATE INDEX ix_measured_task_control ON measured_task (control_group_id);
CREATE TABLE scout (
    task_id uuid NOT NULL,
    expert_id uuid NOT NULL,
    group_id uuid NOT NULL,
    CONSTRAINT pk_scout PRIMARY KEY (task_id, expert_id),
    CONSTRAINT fk_scout_task_id_task FOREIGN KEY (task_id) REFERENCES task (id),
    CONSTRAINT fk_scout_expert_id_expert FOREIGN KEY (expert_id) REFERENCES expert (id),
    CONSTRAINT fk_scout_group_id_rollout_group FOREIGN KEY (group_id) REFERENCES rollout_group (id)
);
CREATE INDEX ix_scout_group ON scout (group_id);
"""

VERDICTS = """
CREATE OR REPLACE FUNCTION tally_verdict_{name}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tally_change (lineage_id, noun, kind, word, num)
    SELECT lineage_id, 'verdict', coalesce(policy_version, ''),
           CASE WHEN score > 0.5 THEN 'passed' ELSE 'failed' END, sum(step) FROM ({rows}) AS changed
    WHERE score IS NOT NULL AND purpose = 'train' AND NOT shown
    GROUP BY 1, 3, 4 HAVING sum(step) <> 0;
    RETURN NULL;
END $$
"""
"""Verdicts on what the policy itself drew to train on, by version: what a teacher drew counts in no pass rate."""

CHANGES = {
    "added": "SELECT new_rows.*, 1 AS step FROM new_rows",
    "deleted": "SELECT old_rows.*, -1 AS step FROM old_rows",
    "changed": "SELECT OLD.*, -1 AS step UNION ALL SELECT NEW.*, 1",
}

OUTCOMES = ("abandoned", "does_not_teach", "teaches")


def upgrade() -> None:
    """Apply the change."""
    op.execute(COLUMNS)
    op.execute(GAP_PROBES)
    op.execute(TABLES)
    for name, rows in CHANGES.items():
        op.execute(VERDICTS.format(name=name, rows=rows))
    columns = [sa.column(name, sa.Text()) for name in ("noun", "old", "new")]
    changes = [{"noun": "measurement", "old": "measuring", "new": outcome} for outcome in OUTCOMES]
    changes.append({"noun": "measurement", "old": "teaches", "new": "lapsed"})
    op.bulk_insert(sa.table("status_change", *columns), changes)
    op.execute(
        "CREATE TRIGGER measurement_status_change BEFORE UPDATE OF status ON measurement "
        "FOR EACH ROW EXECUTE FUNCTION check_status_change()"
    )
