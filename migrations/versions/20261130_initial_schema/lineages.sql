-- The models being trained: every other row belongs to one of them.

CREATE TABLE lineage (
    id UUID NOT NULL,
    name TEXT NOT NULL,
    model TEXT NOT NULL,
    base_sha256 TEXT NOT NULL,
    tokenizer_hash TEXT NOT NULL,
    vocab_size INTEGER NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_lineage PRIMARY KEY (id),
    CONSTRAINT uq_lineage_name UNIQUE (name)
);
