-- The human queue: items, drafts, effects of corrections.

CREATE TABLE correction (
    id UUID NOT NULL,
    lineage_id UUID NOT NULL,
    consultation_id UUID NOT NULL,
    rollout_id UUID NOT NULL,
    split TEXT NOT NULL,
    status TEXT NOT NULL,
    priority FLOAT DEFAULT '0' NOT NULL,
    disagreement FLOAT DEFAULT '0' NOT NULL,
    uncertainty FLOAT DEFAULT '0' NOT NULL,
    person_id UUID,
    lease_until TIMESTAMP WITH TIME ZONE,
    verdict TEXT,
    text TEXT,
    comment TEXT,
    skip_kind TEXT,
    skip_reason TEXT,
    skipped_by UUID[] DEFAULT '{}' NOT NULL,
    held_until TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    decided_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_correction PRIMARY KEY (id),
    CONSTRAINT fk_correction_rollout_id_split_rollout FOREIGN KEY(rollout_id, split) REFERENCES rollout (id, split),
    CONSTRAINT ck_correction_train_only CHECK (split = 'train'),
    CONSTRAINT ck_correction_claim CHECK (status <> 'claimed' OR (person_id IS NOT NULL AND lease_until IS NOT NULL)),
    CONSTRAINT ck_correction_words_have_an_author CHECK (person_id IS NOT NULL OR (text IS NULL AND comment IS NULL
        AND skip_reason IS NULL)),
    CONSTRAINT ck_correction_status CHECK (status IN ('open', 'claimed', 'submitted', 'skipped', 'withdrawn')),
    CONSTRAINT fk_correction_lineage_id_lineage FOREIGN KEY(lineage_id) REFERENCES lineage (id),
    CONSTRAINT uq_correction_consultation_id UNIQUE (consultation_id),
    CONSTRAINT fk_correction_consultation_id_consultation FOREIGN KEY(consultation_id) REFERENCES consultation (id),
    CONSTRAINT fk_correction_person_id_person FOREIGN KEY(person_id) REFERENCES person (id)
);
CREATE INDEX ix_correction_decided ON correction (person_id, decided_at, id);
CREATE INDEX ix_correction_held ON correction (person_id) WHERE status = 'claimed';
CREATE INDEX ix_correction_queue ON correction (lineage_id, priority, disagreement, uncertainty, id)
    WHERE status = 'open';
CREATE INDEX ix_correction_rollout_id ON correction (rollout_id);
CREATE INDEX ix_correction_skipped ON correction (lineage_id, priority, disagreement, uncertainty, id)
    WHERE status = 'skipped';

CREATE TABLE correction_draft (
    correction_id UUID NOT NULL,
    person_id UUID NOT NULL,
    version INTEGER NOT NULL,
    text TEXT NOT NULL,
    comment TEXT NOT NULL,
    spans JSONB NOT NULL,
    saved_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_correction_draft PRIMARY KEY (correction_id, person_id),
    CONSTRAINT fk_correction_draft_correction_id_correction FOREIGN KEY(correction_id) REFERENCES correction (id),
    CONSTRAINT fk_correction_draft_person_id_person FOREIGN KEY(person_id) REFERENCES person (id)
);
CREATE INDEX ix_correction_draft_person_id ON correction_draft (person_id, saved_at);

CREATE TABLE correction_effect (
    id UUID NOT NULL,
    correction_id UUID NOT NULL,
    update_id UUID NOT NULL,
    side TEXT NOT NULL,
    version TEXT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT,
    attempts INTEGER DEFAULT '0' NOT NULL,
    failures INTEGER DEFAULT '0' NOT NULL,
    not_before TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    sent_at TIMESTAMP WITH TIME ZONE,
    num_tokens INTEGER,
    span_start INTEGER,
    span_end INTEGER,
    text_logprob FLOAT,
    span_logprob FLOAT,
    answer TEXT,
    measured_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_correction_effect PRIMARY KEY (id),
    CONSTRAINT uq_correction_effect_correction_id_update_id_side UNIQUE (correction_id, update_id, side),
    CONSTRAINT ck_correction_effect_side CHECK (side IN ('before', 'after')),
    CONSTRAINT ck_correction_effect_status CHECK (status IN ('pending', 'measured', 'gone')),
    CONSTRAINT ck_correction_effect_gone_has_a_reason CHECK (status <> 'gone' OR reason IS NOT NULL),
    CONSTRAINT ck_correction_effect_measured_has_logprobs CHECK (status <> 'measured' OR text_logprob IS NOT NULL),
    CONSTRAINT fk_correction_effect_correction_id_correction FOREIGN KEY(correction_id) REFERENCES correction (id),
    CONSTRAINT fk_correction_effect_update_id_update FOREIGN KEY(update_id) REFERENCES update (id)
);
CREATE INDEX ix_correction_effect_work ON correction_effect (not_before) WHERE status = 'pending';
