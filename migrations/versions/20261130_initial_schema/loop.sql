-- The loop: from the task to the answers about a rollout.

CREATE TABLE evaluation (
    id UUID NOT NULL,
    lineage_id UUID NOT NULL,
    policy_version TEXT NOT NULL,
    split TEXT NOT NULL,
    status TEXT NOT NULL,
    settings JSONB NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    finished_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_evaluation PRIMARY KEY (id),
    CONSTRAINT ck_evaluation_status CHECK (status IN ('running', 'done', 'abandoned')),
    CONSTRAINT ck_evaluation_not_on_train CHECK (split <> 'train' OR settings ->> 'probe' = 'gap'),
    CONSTRAINT fk_evaluation_lineage_id_lineage FOREIGN KEY(lineage_id) REFERENCES lineage (id)
);

CREATE TABLE expert (
    id UUID NOT NULL,
    lineage_id UUID NOT NULL,
    name TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    version TEXT NOT NULL,
    descriptor JSONB NOT NULL,
    status TEXT NOT NULL,
    reason TEXT,
    granted TEXT[] NOT NULL,
    trusted BOOLEAN NOT NULL,
    weight FLOAT NOT NULL,
    group_fraction FLOAT DEFAULT '1' NOT NULL,
    rollouts_per_group INTEGER,
    top_k INTEGER DEFAULT '20' NOT NULL,
    temperature FLOAT DEFAULT '1' NOT NULL,
    consecutive_failures INTEGER DEFAULT '0' NOT NULL,
    num_pauses INTEGER DEFAULT '0' NOT NULL,
    retry_at TIMESTAMP WITH TIME ZONE,
    was_active BOOLEAN DEFAULT 'false' NOT NULL,
    signing_secret TEXT,
    report JSONB NOT NULL,
    own TEXT,
    looked_at TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_expert PRIMARY KEY (id),
    CONSTRAINT ck_expert_status CHECK (status IN ('probation', 'active', 'paused', 'quarantined', 'retired')),
    CONSTRAINT ck_expert_own CHECK (own IN ('execution', 'tool-call', 'exact-match', 'reference', 'reasoning-gym',
        'self-evaluation', 'teacher', 'human')),
    CONSTRAINT fk_expert_lineage_id_lineage FOREIGN KEY(lineage_id) REFERENCES lineage (id)
);
CREATE UNIQUE INDEX uq_expert_live_name ON expert (name) WHERE status <> 'retired' AND own IS NULL;
CREATE UNIQUE INDEX uq_expert_live_endpoint ON expert (endpoint) WHERE status <> 'retired';
CREATE UNIQUE INDEX uq_expert_live_own ON expert (own) WHERE status <> 'retired';

CREATE TABLE loop (
    lineage_id UUID NOT NULL,
    sampling BOOLEAN DEFAULT 'false' NOT NULL,
    training BOOLEAN DEFAULT 'true' NOT NULL,
    max_updates INTEGER,
    blocked_by TEXT,
    CONSTRAINT pk_loop PRIMARY KEY (lineage_id),
    CONSTRAINT fk_loop_lineage_id_lineage FOREIGN KEY(lineage_id) REFERENCES lineage (id)
);

CREATE TABLE task (
    id UUID NOT NULL,
    lineage_id UUID NOT NULL,
    key TEXT NOT NULL,
    domain TEXT NOT NULL,
    family TEXT NOT NULL,
    split TEXT NOT NULL,
    messages JSONB NOT NULL,
    messages_sha256 TEXT NOT NULL,
    metadata JSONB NOT NULL,
    content_sha256 TEXT NOT NULL,
    num_groups INTEGER DEFAULT '0' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_task PRIMARY KEY (id),
    CONSTRAINT uq_task_lineage_id_key UNIQUE (lineage_id, key),
    CONSTRAINT uq_task_id_split UNIQUE (id, split),
    CONSTRAINT ck_task_split CHECK (split IN ('train', 'validation', 'heldout')),
    CONSTRAINT ck_task_reference_is_train_only CHECK (split = 'train' OR NOT jsonb_exists(metadata, 'reference')),
    CONSTRAINT fk_task_lineage_id_lineage FOREIGN KEY(lineage_id) REFERENCES lineage (id)
);
CREATE INDEX ix_task_draw ON task (lineage_id, split, domain, num_groups, id);
CREATE INDEX ix_task_family ON task (lineage_id, domain, family);
CREATE INDEX ix_task_messages ON task (lineage_id, messages_sha256);

CREATE TABLE rollout_group (
    id UUID NOT NULL,
    lineage_id UUID NOT NULL,
    task_id UUID NOT NULL,
    split TEXT NOT NULL,
    purpose TEXT NOT NULL,
    evaluation_id UUID,
    policy_version TEXT,
    size INTEGER NOT NULL,
    sampling JSONB NOT NULL,
    external BOOLEAN DEFAULT 'false' NOT NULL,
    status TEXT NOT NULL,
    reason TEXT,
    attempts INTEGER DEFAULT '0' NOT NULL,
    failures INTEGER DEFAULT '0' NOT NULL,
    lease_until TIMESTAMP WITH TIME ZONE,
    not_before TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    sent_at TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_rollout_group PRIMARY KEY (id),
    CONSTRAINT fk_rollout_group_task_id_split_task FOREIGN KEY(task_id, split) REFERENCES task (id, split),
    CONSTRAINT ck_rollout_group_status CHECK (status IN ('pending', 'asked', 'sampled', 'dead')),
    CONSTRAINT ck_rollout_group_purpose CHECK (purpose IN ('train', 'evaluation', 'probe', 'chat')),
    CONSTRAINT ck_rollout_group_train_draws_train_tasks CHECK (purpose <> 'train' OR split = 'train'),
    CONSTRAINT fk_rollout_group_lineage_id_lineage FOREIGN KEY(lineage_id) REFERENCES lineage (id),
    CONSTRAINT fk_rollout_group_evaluation_id_evaluation FOREIGN KEY(evaluation_id) REFERENCES evaluation (id)
);
CREATE INDEX ix_rollout_group_dead ON rollout_group (lineage_id, id) WHERE status = 'dead';
CREATE INDEX ix_rollout_group_evaluation ON rollout_group (evaluation_id);
CREATE INDEX ix_rollout_group_work ON rollout_group (status, not_before);

CREATE TABLE rollout (
    id UUID NOT NULL,
    lineage_id UUID NOT NULL,
    task_id UUID NOT NULL,
    split TEXT NOT NULL,
    purpose TEXT NOT NULL,
    group_id UUID NOT NULL,
    index_in_group INTEGER NOT NULL,
    status TEXT NOT NULL,
    reason TEXT,
    policy_version TEXT,
    prompt_token_ids INTEGER[] NOT NULL,
    token_ids INTEGER[] NOT NULL,
    sampler_logprobs REAL[],
    action_mask BOOLEAN[] NOT NULL,
    tokenizer_hash TEXT NOT NULL,
    tokenized_at_ingest BOOLEAN DEFAULT 'false' NOT NULL,
    sampling JSONB,
    text TEXT NOT NULL,
    turns JSONB,
    answer_start INTEGER DEFAULT '0' NOT NULL,
    finish_reason TEXT NOT NULL,
    score FLOAT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    settled_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_rollout PRIMARY KEY (id),
    CONSTRAINT fk_rollout_task_id_split_task FOREIGN KEY(task_id, split) REFERENCES task (id, split),
    CONSTRAINT uq_rollout_id_split_purpose UNIQUE (id, split, purpose),
    CONSTRAINT uq_rollout_id_split UNIQUE (id, split),
    CONSTRAINT uq_rollout_group_id_index_in_group UNIQUE (group_id, index_in_group),
    CONSTRAINT ck_rollout_status CHECK (status IN ('open', 'ready', 'set_aside')),
    CONSTRAINT ck_rollout_purpose CHECK (purpose IN ('train', 'evaluation', 'probe', 'chat')),
    CONSTRAINT ck_rollout_mask_is_aligned CHECK (cardinality(token_ids) = cardinality(action_mask)),
    CONSTRAINT ck_rollout_logprobs_are_aligned CHECK (sampler_logprobs IS NULL OR cardinality(token_ids) =
        cardinality(sampler_logprobs)),
    CONSTRAINT ck_rollout_train_rollouts_are_of_train_tasks CHECK (purpose <> 'train' OR split = 'train'),
    CONSTRAINT ck_rollout_set_aside_has_a_reason CHECK (status <> 'set_aside' OR reason IS NOT NULL),
    CONSTRAINT fk_rollout_lineage_id_lineage FOREIGN KEY(lineage_id) REFERENCES lineage (id),
    CONSTRAINT fk_rollout_group_id_rollout_group FOREIGN KEY(group_id) REFERENCES rollout_group (id)
);
CREATE INDEX ix_rollout_open ON rollout (id) WHERE status = 'open';
CREATE INDEX ix_rollout_policy_version ON rollout (lineage_id, policy_version, id);
CREATE INDEX ix_rollout_purpose ON rollout (lineage_id, purpose, id);
CREATE INDEX ix_rollout_set_aside ON rollout (lineage_id, id) WHERE status = 'set_aside';
CREATE INDEX ix_rollout_task_id_id ON rollout (task_id, id);

CREATE TABLE consultation (
    id UUID NOT NULL,
    lineage_id UUID NOT NULL,
    rollout_id UUID NOT NULL,
    expert_id UUID NOT NULL,
    expert_version TEXT NOT NULL,
    stage INTEGER NOT NULL,
    ask JSONB NOT NULL,
    shown UUID[] DEFAULT '{}' NOT NULL,
    status TEXT NOT NULL,
    reason TEXT,
    attempts INTEGER DEFAULT '0' NOT NULL,
    failures INTEGER DEFAULT '0' NOT NULL,
    lease_until TIMESTAMP WITH TIME ZONE,
    not_before TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    sent_at TIMESTAMP WITH TIME ZONE,
    deadline TIMESTAMP WITH TIME ZONE NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    settled_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_consultation PRIMARY KEY (id),
    CONSTRAINT uq_consultation_rollout_id_expert_id UNIQUE (rollout_id, expert_id),
    CONSTRAINT uq_consultation_id_rollout_id UNIQUE (id, rollout_id),
    CONSTRAINT ck_consultation_status CHECK (status IN ('pending', 'asked', 'answered', 'abstained', 'invalid',
        'waiting', 'dead')),
    CONSTRAINT ck_consultation_dead_has_a_reason CHECK (status <> 'dead' OR reason IS NOT NULL),
    CONSTRAINT fk_consultation_lineage_id_lineage FOREIGN KEY(lineage_id) REFERENCES lineage (id),
    CONSTRAINT fk_consultation_rollout_id_rollout FOREIGN KEY(rollout_id) REFERENCES rollout (id),
    CONSTRAINT fk_consultation_expert_id_expert FOREIGN KEY(expert_id) REFERENCES expert (id)
);
CREATE INDEX ix_consultation_dead ON consultation (lineage_id, id) WHERE status = 'dead';
CREATE INDEX ix_consultation_expert_id_id ON consultation (expert_id, id);
CREATE INDEX ix_consultation_expert_status ON consultation (expert_id, status, id);
CREATE INDEX ix_consultation_work ON consultation (status, not_before);

CREATE TABLE answer (
    id UUID NOT NULL,
    lineage_id UUID NOT NULL,
    consultation_id UUID NOT NULL,
    rollout_id UUID NOT NULL,
    split TEXT NOT NULL,
    expert_id UUID NOT NULL,
    expert_version TEXT NOT NULL,
    status TEXT NOT NULL,
    could_train BOOLEAN DEFAULT 'true' NOT NULL,
    derived_from TEXT[] DEFAULT '{}' NOT NULL,
    score FLOAT,
    feedback JSONB,
    solution TEXT,
    distribution_kind TEXT,
    evidence JSONB,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_answer PRIMARY KEY (id),
    CONSTRAINT fk_answer_consultation_id_rollout_id_consultation FOREIGN KEY(consultation_id, rollout_id) REFERENCES
        consultation (id, rollout_id),
    CONSTRAINT fk_answer_rollout_id_split_rollout FOREIGN KEY(rollout_id, split) REFERENCES rollout (id, split),
    CONSTRAINT ck_answer_solutions_are_train_only CHECK (solution IS NULL OR split = 'train'),
    CONSTRAINT ck_answer_score_range CHECK (score BETWEEN 0 AND 1),
    CONSTRAINT ck_answer_status CHECK (status IN ('current', 'withdrawn')),
    CONSTRAINT fk_answer_lineage_id_lineage FOREIGN KEY(lineage_id) REFERENCES lineage (id),
    CONSTRAINT fk_answer_expert_id_expert FOREIGN KEY(expert_id) REFERENCES expert (id)
);
CREATE INDEX ix_answer_expert_id ON answer (expert_id, id);
CREATE INDEX ix_answer_rollout_id ON answer (rollout_id);
CREATE UNIQUE INDEX uq_answer_current ON answer (consultation_id) WHERE status = 'current';

CREATE TABLE consultation_attempt (
    consultation_id UUID NOT NULL,
    number INTEGER NOT NULL,
    outcome TEXT,
    reason TEXT,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_consultation_attempt PRIMARY KEY (consultation_id, number),
    CONSTRAINT ck_consultation_attempt_outcome CHECK (outcome IN ('ok', 'failed')),
    CONSTRAINT fk_consultation_attempt_consultation_id_consultation FOREIGN KEY(consultation_id) REFERENCES
        consultation (id)
);

CREATE TABLE expert_distribution (
    answer_id UUID NOT NULL,
    kind TEXT NOT NULL,
    tokenizer_hash TEXT,
    temperature FLOAT NOT NULL,
    num_rows INTEGER NOT NULL,
    width INTEGER NOT NULL,
    packed BYTEA NOT NULL,
    CONSTRAINT pk_expert_distribution PRIMARY KEY (answer_id),
    CONSTRAINT ck_expert_distribution_kind CHECK (kind IN ('topk', 'samples')),
    CONSTRAINT fk_expert_distribution_answer_id_answer FOREIGN KEY(answer_id) REFERENCES answer (id)
);

ALTER TABLE expert_distribution ALTER COLUMN packed SET STORAGE EXTERNAL; -- it is zstd already
