-- Rows that serve the store itself: repeated requests, processes, counts of rows, allowed status changes.

CREATE TABLE idempotency (
    principal TEXT NOT NULL,
    key TEXT NOT NULL,
    route TEXT NOT NULL,
    request_sha256 TEXT NOT NULL,
    status_code INTEGER NOT NULL,
    body TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_idempotency PRIMARY KEY (principal, key)
);

CREATE TABLE process (
    name TEXT NOT NULL,
    pid BIGINT NOT NULL,
    activity TEXT NOT NULL,
    counters JSONB NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    beat_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_process PRIMARY KEY (name)
);

CREATE TABLE retention (
    name TEXT NOT NULL,
    mark UUID NOT NULL,
    num_deleted BIGINT DEFAULT '0' NOT NULL,
    walked_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_retention PRIMARY KEY (name)
);

CREATE TABLE status_change (
    noun TEXT NOT NULL,
    "old" TEXT NOT NULL,
    "new" TEXT NOT NULL,
    CONSTRAINT pk_status_change PRIMARY KEY (noun, "old", "new")
);

CREATE TABLE tally (
    lineage_id UUID NOT NULL,
    noun TEXT NOT NULL,
    kind TEXT NOT NULL,
    word TEXT NOT NULL,
    num BIGINT NOT NULL,
    CONSTRAINT pk_tally PRIMARY KEY (lineage_id, noun, kind, word)
);

CREATE TABLE tally_change (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    lineage_id UUID NOT NULL,
    noun TEXT NOT NULL,
    kind TEXT NOT NULL,
    word TEXT NOT NULL,
    num BIGINT NOT NULL,
    CONSTRAINT pk_tally_change PRIMARY KEY (id)
);

CREATE TABLE vocabulary (
    tokenizer_hash TEXT NOT NULL,
    packed BYTEA NOT NULL,
    CONSTRAINT pk_vocabulary PRIMARY KEY (tokenizer_hash)
);

ALTER TABLE vocabulary ALTER COLUMN packed SET STORAGE EXTERNAL; -- it is zstd already
-- Rows of tally_change live for a second: the table must not fill with dead ones.
ALTER TABLE tally_change SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
