-- The ledger: lessons, updates, policy versions.

CREATE TABLE policy_version (
    id UUID NOT NULL,
    lineage_id UUID NOT NULL,
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    parent_id UUID,
    status TEXT NOT NULL,
    reason TEXT,
    artifact_sha256 TEXT,
    update_number INTEGER DEFAULT '0' NOT NULL,
    gate JSONB,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    served_at TIMESTAMP WITH TIME ZONE,
    weights_deleted_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_policy_version PRIMARY KEY (id),
    CONSTRAINT uq_policy_version_lineage_id_name UNIQUE (lineage_id, name),
    CONSTRAINT uq_policy_version_lineage_id_number UNIQUE (lineage_id, number),
    CONSTRAINT ck_policy_version_status CHECK (status IN ('candidate', 'serving', 'rejected', 'superseded',
        'withdrawn')),
    CONSTRAINT ck_policy_version_has_weights CHECK (number = 0 OR artifact_sha256 IS NOT NULL),
    CONSTRAINT fk_policy_version_lineage_id_lineage FOREIGN KEY(lineage_id) REFERENCES lineage (id),
    CONSTRAINT fk_policy_version_parent_id_policy_version FOREIGN KEY(parent_id) REFERENCES policy_version (id)
);
CREATE UNIQUE INDEX uq_policy_version_serving ON policy_version (lineage_id) WHERE status = 'serving';

CREATE TABLE update (
    id UUID NOT NULL,
    lineage_id UUID NOT NULL,
    number INTEGER NOT NULL,
    status TEXT NOT NULL,
    reason TEXT,
    owner UUID NOT NULL,
    objective TEXT NOT NULL,
    settings JSONB NOT NULL,
    metrics JSONB NOT NULL,
    parent_sha256 TEXT,
    fell_back_to TEXT,
    checkpoint_sha256 TEXT,
    batch_sha256 TEXT NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    applied_at TIMESTAMP WITH TIME ZONE,
    effects_planned BOOLEAN DEFAULT 'false' NOT NULL,
    CONSTRAINT pk_update PRIMARY KEY (id),
    CONSTRAINT ck_update_status CHECK (status IN ('started', 'applied', 'abandoned', 'undone')),
    CONSTRAINT ck_update_applied_has_a_checkpoint CHECK (status <> 'applied' OR checkpoint_sha256 IS NOT NULL),
    CONSTRAINT fk_update_lineage_id_lineage FOREIGN KEY(lineage_id) REFERENCES lineage (id)
);
CREATE INDEX ix_update_effects_due ON update (lineage_id, number) WHERE status = 'applied' AND NOT effects_planned;
CREATE UNIQUE INDEX uq_update_number ON update (lineage_id, number) WHERE status IN ('started', 'applied');

CREATE TABLE fallback (
    id UUID NOT NULL,
    lineage_id UUID NOT NULL,
    version_id UUID NOT NULL,
    version_update INTEGER NOT NULL,
    after_update INTEGER NOT NULL,
    checkpoint_sha256 TEXT NOT NULL,
    fresh_optimizer BOOLEAN NOT NULL,
    num_refused INTEGER NOT NULL,
    reason TEXT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_fallback PRIMARY KEY (id),
    CONSTRAINT ck_fallback_goes_back CHECK (version_update <= after_update),
    CONSTRAINT fk_fallback_lineage_id_lineage FOREIGN KEY(lineage_id) REFERENCES lineage (id),
    CONSTRAINT fk_fallback_version_id_policy_version FOREIGN KEY(version_id) REFERENCES policy_version (id)
);
CREATE INDEX ix_fallback_lineage_id ON fallback (lineage_id, id);

CREATE TABLE lesson (
    id UUID NOT NULL,
    lineage_id UUID NOT NULL,
    rollout_id UUID NOT NULL,
    split TEXT NOT NULL,
    purpose TEXT NOT NULL,
    group_id UUID NOT NULL,
    ordinal INTEGER NOT NULL,
    late BOOLEAN DEFAULT 'false' NOT NULL,
    status TEXT NOT NULL,
    reason TEXT,
    owner UUID,
    lease_until TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_lesson PRIMARY KEY (id),
    CONSTRAINT fk_lesson_rollout_id_split_purpose_rollout FOREIGN KEY(rollout_id, split, purpose) REFERENCES rollout
        (id, split, purpose),
    CONSTRAINT ck_lesson_train_only CHECK (split = 'train' AND purpose = 'train'),
    CONSTRAINT ck_lesson_claim CHECK (status <> 'claimed' OR (owner IS NOT NULL AND lease_until IS NOT NULL)),
    CONSTRAINT uq_lesson_rollout_id_ordinal UNIQUE (rollout_id, ordinal),
    CONSTRAINT ck_lesson_status CHECK (status IN ('open', 'ready', 'claimed', 'used', 'set_aside', 'invalid',
        'withdrawn')),
    CONSTRAINT fk_lesson_lineage_id_lineage FOREIGN KEY(lineage_id) REFERENCES lineage (id),
    CONSTRAINT fk_lesson_group_id_rollout_group FOREIGN KEY(group_id) REFERENCES rollout_group (id)
);
CREATE INDEX ix_lesson_group_id ON lesson (group_id);
CREATE INDEX ix_lesson_work ON lesson (lineage_id, status, group_id);

CREATE TABLE update_lesson (
    update_id UUID NOT NULL,
    lesson_id UUID NOT NULL,
    status TEXT NOT NULL,
    baseline_group TEXT,
    terms JSONB NOT NULL,
    future_nonzero BOOLEAN DEFAULT 'false' NOT NULL,
    staleness INTEGER,
    token_costs REAL[],
    CONSTRAINT pk_update_lesson PRIMARY KEY (update_id, lesson_id),
    CONSTRAINT ck_update_lesson_status CHECK (status IN ('started', 'applied', 'abandoned', 'undone')),
    CONSTRAINT fk_update_lesson_update_id_update FOREIGN KEY(update_id) REFERENCES update (id),
    CONSTRAINT fk_update_lesson_lesson_id_lesson FOREIGN KEY(lesson_id) REFERENCES lesson (id)
);
CREATE INDEX ix_update_lesson_lesson_id ON update_lesson (lesson_id);
CREATE INDEX ix_update_lesson_terms ON update_lesson USING gin (terms jsonb_path_ops);
CREATE UNIQUE INDEX uq_update_lesson_counts ON update_lesson (lesson_id) WHERE status IN ('started', 'applied');

CREATE TABLE lesson_answer (
    lesson_id UUID NOT NULL,
    answer_id UUID NOT NULL,
    CONSTRAINT pk_lesson_answer PRIMARY KEY (lesson_id, answer_id),
    CONSTRAINT fk_lesson_answer_lesson_id_lesson FOREIGN KEY(lesson_id) REFERENCES lesson (id),
    CONSTRAINT fk_lesson_answer_answer_id_answer FOREIGN KEY(answer_id) REFERENCES answer (id)
);
CREATE INDEX ix_lesson_answer_answer_id ON lesson_answer (answer_id);

CREATE TABLE teacher_choices (
    update_id UUID NOT NULL,
    lesson_id UUID NOT NULL,
    num_rows INTEGER NOT NULL,
    width INTEGER NOT NULL,
    packed BYTEA NOT NULL,
    CONSTRAINT pk_teacher_choices PRIMARY KEY (update_id, lesson_id),
    CONSTRAINT fk_teacher_choices_update_id_lesson_id_update_lesson FOREIGN KEY(update_id, lesson_id) REFERENCES
        update_lesson (update_id, lesson_id) ON DELETE CASCADE
);

ALTER TABLE teacher_choices ALTER COLUMN packed SET STORAGE EXTERNAL; -- it is zstd already
