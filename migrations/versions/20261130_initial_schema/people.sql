-- People and services: keys, passwords, browser sessions; the audit trail; erased texts.

CREATE TABLE login_attempt (
    id UUID NOT NULL,
    name_sha256 TEXT NOT NULL,
    address TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_login_attempt PRIMARY KEY (id)
);
CREATE INDEX ix_login_attempt_address_created_at ON login_attempt (address, created_at);
CREATE INDEX ix_login_attempt_created_at ON login_attempt (created_at);
CREATE INDEX ix_login_attempt_name_sha256_created_at ON login_attempt (name_sha256, created_at);

CREATE TABLE person (
    id UUID NOT NULL,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    erased_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_person PRIMARY KEY (id),
    CONSTRAINT ck_person_role CHECK (role IN ('owner', 'operator', 'annotator', 'service')),
    CONSTRAINT uq_person_name UNIQUE (name)
);

CREATE TABLE api_key (
    id UUID NOT NULL,
    person_id UUID NOT NULL,
    name TEXT DEFAULT 'first key' NOT NULL,
    prefix TEXT,
    key_sha256 TEXT NOT NULL,
    scopes TEXT[],
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    last_used_at TIMESTAMP WITH TIME ZONE,
    revoked_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_api_key PRIMARY KEY (id),
    CONSTRAINT fk_api_key_person_id_person FOREIGN KEY(person_id) REFERENCES person (id),
    CONSTRAINT uq_api_key_key_sha256 UNIQUE (key_sha256)
);
CREATE INDEX ix_api_key_person_id ON api_key (person_id);

CREATE TABLE audit (
    id UUID NOT NULL,
    person_id UUID,
    via TEXT NOT NULL,
    credential_id UUID,
    address TEXT,
    action TEXT NOT NULL,
    noun TEXT NOT NULL,
    noun_id TEXT,
    detail JSONB DEFAULT '{}' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_audit PRIMARY KEY (id),
    CONSTRAINT ck_audit_via CHECK (via IN ('key', 'session', 'open', 'signature', 'system')),
    CONSTRAINT fk_audit_person_id_person FOREIGN KEY(person_id) REFERENCES person (id)
);
CREATE INDEX ix_audit_action_id ON audit (action, id);
CREATE INDEX ix_audit_noun_id ON audit (noun_id, id);
CREATE INDEX ix_audit_person_id_id ON audit (person_id, id);

CREATE TABLE erasure (
    id UUID NOT NULL,
    person_id UUID NOT NULL,
    report JSONB NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_erasure PRIMARY KEY (id),
    CONSTRAINT fk_erasure_person_id_person FOREIGN KEY(person_id) REFERENCES person (id)
);
CREATE INDEX ix_erasure_person_id ON erasure (person_id);

CREATE TABLE password (
    person_id UUID NOT NULL,
    hash TEXT NOT NULL,
    changed_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_password PRIMARY KEY (person_id),
    CONSTRAINT fk_password_person_id_person FOREIGN KEY(person_id) REFERENCES person (id)
);

CREATE TABLE erased_text (
    erasure_id UUID NOT NULL,
    noun TEXT NOT NULL,
    noun_id UUID NOT NULL,
    field TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    num_chars INTEGER NOT NULL,
    CONSTRAINT pk_erased_text PRIMARY KEY (erasure_id, noun, noun_id, field),
    CONSTRAINT fk_erased_text_erasure_id_erasure FOREIGN KEY(erasure_id) REFERENCES erasure (id)
);

CREATE TABLE login_link (
    id UUID NOT NULL,
    person_id UUID NOT NULL,
    key_id UUID,
    purpose TEXT NOT NULL,
    token_sha256 TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    used_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_login_link PRIMARY KEY (id),
    CONSTRAINT ck_login_link_purpose CHECK (purpose IN ('login', 'set_password')),
    CONSTRAINT fk_login_link_person_id_person FOREIGN KEY(person_id) REFERENCES person (id),
    CONSTRAINT fk_login_link_key_id_api_key FOREIGN KEY(key_id) REFERENCES api_key (id),
    CONSTRAINT uq_login_link_token_sha256 UNIQUE (token_sha256)
);
CREATE INDEX ix_login_link_person_id ON login_link (person_id);

CREATE TABLE login_session (
    id UUID NOT NULL,
    person_id UUID NOT NULL,
    key_id UUID,
    token_sha256 TEXT NOT NULL,
    address TEXT,
    agent TEXT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    seen_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_login_session PRIMARY KEY (id),
    CONSTRAINT fk_login_session_person_id_person FOREIGN KEY(person_id) REFERENCES person (id),
    CONSTRAINT fk_login_session_key_id_api_key FOREIGN KEY(key_id) REFERENCES api_key (id),
    CONSTRAINT uq_login_session_token_sha256 UNIQUE (token_sha256)
);
CREATE INDEX ix_login_session_person_id_id ON login_session (person_id, id);
