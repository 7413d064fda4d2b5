"""initial schema

Revision: 20261121_initial_schema
Follows: None
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "20261121_initial_schema"
down_revision = None
branch_labels = None
depends_on = None


STATUS_CHANGES = {
    "rollout_group": {
        "pending": ["asked", "dead"],
        "asked": ["dead", "pending", "sampled"],
        "dead": ["pending"],
    },
    "rollout": {
        "open": ["ready", "set_aside"],
        "ready": ["set_aside"],
    },
    "expert": {
        "probation": ["active", "paused", "quarantined", "retired"],
        "active": ["paused", "probation", "quarantined", "retired"],
        "paused": ["active", "probation", "retired"],
        "quarantined": ["probation", "retired"],
    },
    "consultation": {
        "pending": ["asked", "dead"],
        "asked": ["abstained", "answered", "dead", "invalid", "pending", "waiting"],
        "waiting": ["abstained", "answered", "dead", "invalid"],
        "dead": ["pending"],
    },
    "answer": {
        "current": ["withdrawn"],
    },
    "correction": {
        "open": ["claimed", "withdrawn"],
        "claimed": ["open", "skipped", "submitted", "withdrawn"],
        "submitted": ["withdrawn"],
        "skipped": ["open", "withdrawn"],
        "withdrawn": ["open"],
    },
    "lesson": {
        "open": ["ready", "set_aside", "withdrawn"],
        "ready": ["claimed", "set_aside", "withdrawn"],
        "claimed": ["invalid", "ready", "set_aside", "used", "withdrawn"],
        "used": ["ready", "withdrawn"],
        "set_aside": ["withdrawn"],
        "invalid": ["withdrawn"],
    },
    "update": {
        "started": ["abandoned", "applied"],
        "applied": ["undone"],
    },
    "policy_version": {
        "candidate": ["rejected", "serving", "withdrawn"],
        "serving": ["superseded", "withdrawn"],
        "superseded": ["serving", "withdrawn"],
        "rejected": ["withdrawn"],
    },
    "evaluation": {
        "running": ["abandoned", "done"],
    },
}

CHECK_STATUS_CHANGE = """
CREATE FUNCTION check_status_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status IS DISTINCT FROM OLD.status AND NOT EXISTS (
        SELECT FROM status_change c WHERE c.noun = TG_TABLE_NAME AND c.old = OLD.status AND c.new = NEW.status
    ) THEN
        RAISE EXCEPTION '% cannot change from % to %', TG_TABLE_NAME, OLD.status, NEW.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'status_change';
    END IF;
    RETURN NEW;
END $$
"""


def upgrade() -> None:
    """Apply the change."""
    op.create_table(
        "idempotency",
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("request_sha256", sa.Text(), nullable=False),
        sa.Column("status_code", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("principal", "key", name=op.f("pk_idempotency")),
    )
    op.create_table(
        "lineage",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("base_sha256", sa.Text(), nullable=False),
        sa.Column("tokenizer_hash", sa.Text(), nullable=False),
        sa.Column("vocab_size", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lineage")),
        sa.UniqueConstraint("name", name=op.f("uq_lineage_name")),
    )
    op.create_table(
        "person",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("role IN ('owner', 'operator', 'annotator', 'service')", name=op.f("ck_person_role")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_person")),
        sa.UniqueConstraint("name", name=op.f("uq_person_name")),
    )
    op.create_table(
        "process",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("activity", sa.Text(), nullable=False),
        sa.Column("counters", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("beat_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_process")),
    )
    op.create_table(
        "status_change",
        sa.Column("noun", sa.Text(), nullable=False),
        sa.Column("old", sa.Text(), nullable=False),
        sa.Column("new", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("noun", "old", "new", name=op.f("pk_status_change")),
    )
    op.create_table(
        "api_key",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("key_sha256", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name=op.f("fk_api_key_person_id_person")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_key")),
        sa.UniqueConstraint("key_sha256", name=op.f("uq_api_key_key_sha256")),
    )
    op.create_table(
        "evaluation",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("lineage_id", sa.Uuid(), nullable=False),
        sa.Column("policy_version", sa.Text(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("settings", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("split <> 'train' OR settings ->> 'probe' = 'gap'", name=op.f("ck_evaluation_not_on_train")),
        sa.CheckConstraint("status IN ('running', 'done', 'abandoned')", name=op.f("ck_evaluation_status")),
        sa.ForeignKeyConstraint(["lineage_id"], ["lineage.id"], name=op.f("fk_evaluation_lineage_id_lineage")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluation")),
    )
    op.create_table(
        "expert",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("lineage_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("descriptor", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("granted", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("trusted", sa.Boolean(), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("group_fraction", sa.Float(), server_default="1", nullable=False),
        sa.Column("rollouts_per_group", sa.Integer(), nullable=True),
        sa.Column("top_k", sa.Integer(), server_default="20", nullable=False),
        sa.Column("temperature", sa.Float(), server_default="1", nullable=False),
        sa.Column("consecutive_failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("signing_secret", sa.Text(), nullable=True),
        sa.Column("report", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "status IN ('probation', 'active', 'paused', 'quarantined', 'retired')", name=op.f("ck_expert_status")
        ),
        sa.ForeignKeyConstraint(["lineage_id"], ["lineage.id"], name=op.f("fk_expert_lineage_id_lineage")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_expert")),
    )
    op.create_index(
        "uq_expert_live_name", "expert", ["name"], unique=True, postgresql_where=sa.text("status <> 'retired'")
    )
    op.create_table(
        "loop",
        sa.Column("lineage_id", sa.Uuid(), nullable=False),
        sa.Column("sampling", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("training", sa.Boolean(), server_default="true", nullable=False),
        sa.Column("max_updates", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["lineage_id"], ["lineage.id"], name=op.f("fk_loop_lineage_id_lineage")),
        sa.PrimaryKeyConstraint("lineage_id", name=op.f("pk_loop")),
    )
    op.create_table(
        "policy_version",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("lineage_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("artifact_sha256", sa.Text(), nullable=True),
        sa.Column("update_number", sa.Integer(), server_default="0", nullable=False),
        sa.Column("gate", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("served_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('candidate', 'serving', 'rejected', 'superseded', 'withdrawn')",
            name=op.f("ck_policy_version_status"),
        ),
        sa.CheckConstraint("number = 0 OR artifact_sha256 IS NOT NULL", name=op.f("ck_policy_version_has_weights")),
        sa.ForeignKeyConstraint(["lineage_id"], ["lineage.id"], name=op.f("fk_policy_version_lineage_id_lineage")),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["policy_version.id"], name=op.f("fk_policy_version_parent_id_policy_version")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policy_version")),
        sa.UniqueConstraint("lineage_id", "name", name=op.f("uq_policy_version_lineage_id_name")),
        sa.UniqueConstraint("lineage_id", "number", name=op.f("uq_policy_version_lineage_id_number")),
    )
    op.create_index(
        "uq_policy_version_serving",
        "policy_version",
        ["lineage_id"],
        unique=True,
        postgresql_where=sa.text("status = 'serving'"),
    )
    op.create_table(
        "task",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("lineage_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("family", sa.Text(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("messages", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("messages_sha256", sa.Text(), nullable=False),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("content_sha256", sa.Text(), nullable=False),
        sa.Column("num_groups", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "split = 'train' OR NOT jsonb_exists(metadata, 'reference')", name=op.f("ck_task_reference_is_train_only")
        ),
        sa.CheckConstraint("split IN ('train', 'validation', 'heldout')", name=op.f("ck_task_split")),
        sa.ForeignKeyConstraint(["lineage_id"], ["lineage.id"], name=op.f("fk_task_lineage_id_lineage")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task")),
        sa.UniqueConstraint("id", "split", name=op.f("uq_task_id_split")),
        sa.UniqueConstraint("lineage_id", "key", name=op.f("uq_task_lineage_id_key")),
    )
    op.create_index("ix_task_draw", "task", ["lineage_id", "split", "domain", "num_groups", "id"], unique=False)
    op.create_index("ix_task_family", "task", ["lineage_id", "domain", "family"], unique=False)
    op.create_index("ix_task_messages", "task", ["lineage_id", "messages_sha256"], unique=False)
    op.create_table(
        "update",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("lineage_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("owner", sa.Uuid(), nullable=False),
        sa.Column("objective", sa.Text(), nullable=False),
        sa.Column("settings", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("metrics", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("parent_sha256", sa.Text(), nullable=True),
        sa.Column("checkpoint_sha256", sa.Text(), nullable=True),
        sa.Column("batch_sha256", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("applied_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status <> 'applied' OR checkpoint_sha256 IS NOT NULL", name=op.f("ck_update_applied_has_a_checkpoint")
        ),
        sa.CheckConstraint("status IN ('started', 'applied', 'abandoned', 'undone')", name=op.f("ck_update_status")),
        sa.ForeignKeyConstraint(["lineage_id"], ["lineage.id"], name=op.f("fk_update_lineage_id_lineage")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_update")),
    )
    op.create_index(
        "uq_update_number",
        "update",
        ["lineage_id", "number"],
        unique=True,
        postgresql_where=sa.text("status IN ('started', 'applied')"),
    )
    op.create_table(
        "rollout_group",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("lineage_id", sa.Uuid(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("evaluation_id", sa.Uuid(), nullable=True),
        sa.Column("policy_version", sa.Text(), nullable=True),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("sampling", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("external", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "purpose <> 'train' OR split = 'train'", name=op.f("ck_rollout_group_train_draws_train_tasks")
        ),
        sa.CheckConstraint(
            "purpose IN ('train', 'evaluation', 'probe', 'chat')", name=op.f("ck_rollout_group_purpose")
        ),
        sa.CheckConstraint("status IN ('pending', 'asked', 'sampled', 'dead')", name=op.f("ck_rollout_group_status")),
        sa.ForeignKeyConstraint(
            ["evaluation_id"], ["evaluation.id"], name=op.f("fk_rollout_group_evaluation_id_evaluation")
        ),
        sa.ForeignKeyConstraint(["lineage_id"], ["lineage.id"], name=op.f("fk_rollout_group_lineage_id_lineage")),
        sa.ForeignKeyConstraint(
            ["task_id", "split"], ["task.id", "task.split"], name=op.f("fk_rollout_group_task_id_split_task")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollout_group")),
    )
    op.create_index("ix_rollout_group_evaluation", "rollout_group", ["evaluation_id"], unique=False)
    op.create_index("ix_rollout_group_work", "rollout_group", ["status", "not_before"], unique=False)
    op.create_table(
        "rollout",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("lineage_id", sa.Uuid(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Uuid(), nullable=False),
        sa.Column("index_in_group", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("policy_version", sa.Text(), nullable=True),
        sa.Column("prompt_token_ids", sa.ARRAY(sa.Integer()), nullable=False),
        sa.Column("token_ids", sa.ARRAY(sa.Integer()), nullable=False),
        sa.Column("sampler_logprobs", sa.ARRAY(sa.REAL()), nullable=True),
        sa.Column("action_mask", sa.ARRAY(sa.Boolean()), nullable=False),
        sa.Column("tokenizer_hash", sa.Text(), nullable=False),
        sa.Column("tokenized_at_ingest", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("sampling", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("finish_reason", sa.Text(), nullable=False),
        sa.Column("score", sa.Float(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "purpose <> 'train' OR split = 'train'", name=op.f("ck_rollout_train_rollouts_are_of_train_tasks")
        ),
        sa.CheckConstraint("purpose IN ('train', 'evaluation', 'probe', 'chat')", name=op.f("ck_rollout_purpose")),
        sa.CheckConstraint(
            "status <> 'set_aside' OR reason IS NOT NULL", name=op.f("ck_rollout_set_aside_has_a_reason")
        ),
        sa.CheckConstraint("status IN ('open', 'ready', 'set_aside')", name=op.f("ck_rollout_status")),
        sa.CheckConstraint(
            "cardinality(token_ids) = cardinality(action_mask)", name=op.f("ck_rollout_mask_is_aligned")
        ),
        sa.CheckConstraint(
            "sampler_logprobs IS NULL OR cardinality(token_ids) = cardinality(sampler_logprobs)",
            name=op.f("ck_rollout_logprobs_are_aligned"),
        ),
        sa.ForeignKeyConstraint(["group_id"], ["rollout_group.id"], name=op.f("fk_rollout_group_id_rollout_group")),
        sa.ForeignKeyConstraint(["lineage_id"], ["lineage.id"], name=op.f("fk_rollout_lineage_id_lineage")),
        sa.ForeignKeyConstraint(
            ["task_id", "split"], ["task.id", "task.split"], name=op.f("fk_rollout_task_id_split_task")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollout")),
        sa.UniqueConstraint("group_id", "index_in_group", name=op.f("uq_rollout_group_id_index_in_group")),
        sa.UniqueConstraint("id", "split", "purpose", name=op.f("uq_rollout_id_split_purpose")),
        sa.UniqueConstraint("id", "split", name=op.f("uq_rollout_id_split")),
    )
    op.create_index("ix_rollout_open", "rollout", ["id"], unique=False, postgresql_where=sa.text("status = 'open'"))
    op.create_index("ix_rollout_task_id_id", "rollout", ["task_id", "id"], unique=False)
    op.create_table(
        "consultation",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("lineage_id", sa.Uuid(), nullable=False),
        sa.Column("rollout_id", sa.Uuid(), nullable=False),
        sa.Column("expert_id", sa.Uuid(), nullable=False),
        sa.Column("expert_version", sa.Text(), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("ask", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status <> 'dead' OR reason IS NOT NULL", name=op.f("ck_consultation_dead_has_a_reason")),
        sa.CheckConstraint(
            "status IN ('pending', 'asked', 'answered', 'abstained', 'invalid', 'waiting', 'dead')",
            name=op.f("ck_consultation_status"),
        ),
        sa.ForeignKeyConstraint(["expert_id"], ["expert.id"], name=op.f("fk_consultation_expert_id_expert")),
        sa.ForeignKeyConstraint(["lineage_id"], ["lineage.id"], name=op.f("fk_consultation_lineage_id_lineage")),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollout.id"], name=op.f("fk_consultation_rollout_id_rollout")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_consultation")),
        sa.UniqueConstraint("id", "rollout_id", name=op.f("uq_consultation_id_rollout_id")),
        sa.UniqueConstraint("rollout_id", "expert_id", name=op.f("uq_consultation_rollout_id_expert_id")),
    )
    op.create_index("ix_consultation_expert_id_id", "consultation", ["expert_id", "id"], unique=False)
    op.create_index("ix_consultation_work", "consultation", ["status", "not_before"], unique=False)
    op.create_table(
        "lesson",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("lineage_id", sa.Uuid(), nullable=False),
        sa.Column("rollout_id", sa.Uuid(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Uuid(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("late", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("owner", sa.Uuid(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("split = 'train' AND purpose = 'train'", name=op.f("ck_lesson_train_only")),
        sa.CheckConstraint(
            "status <> 'claimed' OR (owner IS NOT NULL AND lease_until IS NOT NULL)", name=op.f("ck_lesson_claim")
        ),
        sa.CheckConstraint(
            "status IN ('open', 'ready', 'claimed', 'used', 'set_aside', 'invalid', 'withdrawn')",
            name=op.f("ck_lesson_status"),
        ),
        sa.ForeignKeyConstraint(["group_id"], ["rollout_group.id"], name=op.f("fk_lesson_group_id_rollout_group")),
        sa.ForeignKeyConstraint(["lineage_id"], ["lineage.id"], name=op.f("fk_lesson_lineage_id_lineage")),
        sa.ForeignKeyConstraint(
            ["rollout_id", "split", "purpose"],
            ["rollout.id", "rollout.split", "rollout.purpose"],
            name=op.f("fk_lesson_rollout_id_split_purpose_rollout"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lesson")),
        sa.UniqueConstraint("rollout_id", "ordinal", name=op.f("uq_lesson_rollout_id_ordinal")),
    )
    op.create_index("ix_lesson_group_id", "lesson", ["group_id"], unique=False)
    op.create_index("ix_lesson_work", "lesson", ["lineage_id", "status", "group_id"], unique=False)
    op.create_table(
        "answer",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("lineage_id", sa.Uuid(), nullable=False),
        sa.Column("consultation_id", sa.Uuid(), nullable=False),
        sa.Column("rollout_id", sa.Uuid(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("expert_id", sa.Uuid(), nullable=False),
        sa.Column("expert_version", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("score", sa.Float(), nullable=True),
        sa.Column("feedback", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("solution", sa.Text(), nullable=True),
        sa.Column("distribution_kind", sa.Text(), nullable=True),
        sa.Column("evidence", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("solution IS NULL OR split = 'train'", name=op.f("ck_answer_solutions_are_train_only")),
        sa.CheckConstraint("status IN ('current', 'withdrawn')", name=op.f("ck_answer_status")),
        sa.CheckConstraint("score BETWEEN 0 AND 1", name=op.f("ck_answer_score_range")),
        sa.ForeignKeyConstraint(
            ["consultation_id", "rollout_id"],
            ["consultation.id", "consultation.rollout_id"],
            name=op.f("fk_answer_consultation_id_rollout_id_consultation"),
        ),
        sa.ForeignKeyConstraint(["expert_id"], ["expert.id"], name=op.f("fk_answer_expert_id_expert")),
        sa.ForeignKeyConstraint(["lineage_id"], ["lineage.id"], name=op.f("fk_answer_lineage_id_lineage")),
        sa.ForeignKeyConstraint(
            ["rollout_id", "split"], ["rollout.id", "rollout.split"], name=op.f("fk_answer_rollout_id_split_rollout")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_answer")),
    )
    op.create_index("ix_answer_rollout_id", "answer", ["rollout_id"], unique=False)
    op.create_index(
        "uq_answer_current", "answer", ["consultation_id"], unique=True, postgresql_where=sa.text("status = 'current'")
    )
    op.create_table(
        "consultation_attempt",
        sa.Column("consultation_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("outcome IN ('ok', 'failed')", name=op.f("ck_consultation_attempt_outcome")),
        sa.ForeignKeyConstraint(
            ["consultation_id"], ["consultation.id"], name=op.f("fk_consultation_attempt_consultation_id_consultation")
        ),
        sa.PrimaryKeyConstraint("consultation_id", "number", name=op.f("pk_consultation_attempt")),
    )
    op.create_table(
        "correction",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("lineage_id", sa.Uuid(), nullable=False),
        sa.Column("consultation_id", sa.Uuid(), nullable=False),
        sa.Column("rollout_id", sa.Uuid(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("priority", sa.Float(), server_default="0", nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("verdict", sa.Text(), nullable=True),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("comment", sa.Text(), nullable=True),
        sa.Column("skip_reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("split = 'train'", name=op.f("ck_correction_train_only")),
        sa.CheckConstraint(
            "status <> 'claimed' OR (person_id IS NOT NULL AND lease_until IS NOT NULL)",
            name=op.f("ck_correction_claim"),
        ),
        sa.CheckConstraint(
            "status IN ('open', 'claimed', 'submitted', 'skipped', 'withdrawn')", name=op.f("ck_correction_status")
        ),
        sa.ForeignKeyConstraint(
            ["consultation_id"], ["consultation.id"], name=op.f("fk_correction_consultation_id_consultation")
        ),
        sa.ForeignKeyConstraint(["lineage_id"], ["lineage.id"], name=op.f("fk_correction_lineage_id_lineage")),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name=op.f("fk_correction_person_id_person")),
        sa.ForeignKeyConstraint(
            ["rollout_id", "split"],
            ["rollout.id", "rollout.split"],
            name=op.f("fk_correction_rollout_id_split_rollout"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_correction")),
        sa.UniqueConstraint("consultation_id", name=op.f("uq_correction_consultation_id")),
    )
    op.create_index("ix_correction_queue", "correction", ["status", "priority", "id"], unique=False)
    op.create_table(
        "update_lesson",
        sa.Column("update_id", sa.Uuid(), nullable=False),
        sa.Column("lesson_id", sa.Uuid(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("baseline_group", sa.Text(), nullable=True),
        sa.Column("terms", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("future_nonzero", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("staleness", sa.Integer(), nullable=True),
        sa.Column("token_costs", sa.ARRAY(sa.REAL()), nullable=True),
        sa.CheckConstraint(
            "status IN ('started', 'applied', 'abandoned', 'undone')", name=op.f("ck_update_lesson_status")
        ),
        sa.ForeignKeyConstraint(["lesson_id"], ["lesson.id"], name=op.f("fk_update_lesson_lesson_id_lesson")),
        sa.ForeignKeyConstraint(["update_id"], ["update.id"], name=op.f("fk_update_lesson_update_id_update")),
        sa.PrimaryKeyConstraint("update_id", "lesson_id", name=op.f("pk_update_lesson")),
    )
    op.create_index(
        "uq_update_lesson_counts",
        "update_lesson",
        ["lesson_id"],
        unique=True,
        postgresql_where=sa.text("status IN ('started', 'applied')"),
    )
    op.create_table(
        "expert_distribution",
        sa.Column("answer_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("tokenizer_hash", sa.Text(), nullable=True),
        sa.Column("temperature", sa.Float(), nullable=False),
        sa.Column("num_rows", sa.Integer(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("kind IN ('topk', 'samples')", name=op.f("ck_expert_distribution_kind")),
        sa.ForeignKeyConstraint(["answer_id"], ["answer.id"], name=op.f("fk_expert_distribution_answer_id_answer")),
        sa.PrimaryKeyConstraint("answer_id", name=op.f("pk_expert_distribution")),
    )
    op.create_table(
        "lesson_answer",
        sa.Column("lesson_id", sa.Uuid(), nullable=False),
        sa.Column("answer_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(["answer_id"], ["answer.id"], name=op.f("fk_lesson_answer_answer_id_answer")),
        sa.ForeignKeyConstraint(["lesson_id"], ["lesson.id"], name=op.f("fk_lesson_answer_lesson_id_lesson")),
        sa.PrimaryKeyConstraint("lesson_id", "answer_id", name=op.f("pk_lesson_answer")),
    )
    op.execute("ALTER TABLE expert_distribution ALTER COLUMN packed SET STORAGE EXTERNAL")  # it is zstd already
    op.bulk_insert(
        sa.table("status_change", sa.column("noun"), sa.column("old"), sa.column("new")),
        [
            {"noun": noun, "old": old, "new": new}
            for noun, changes in STATUS_CHANGES.items()
            for old, news in changes.items()
            for new in news
        ],
    )
    op.execute(CHECK_STATUS_CHANGE)
    for noun in STATUS_CHANGES:
        op.execute(
            f'CREATE TRIGGER {noun}_status_change BEFORE UPDATE OF status ON "{noun}" '
            "FOR EACH ROW EXECUTE FUNCTION check_status_change()"
        )


def downgrade() -> None:
    """Take the change back."""
    op.drop_table("lesson_answer")
    op.drop_table("expert_distribution")
    op.drop_index(
        "uq_update_lesson_counts",
        table_name="update_lesson",
        postgresql_where=sa.text("status IN ('started', 'applied')"),
    )
    op.drop_table("update_lesson")
    op.drop_index("ix_correction_queue", table_name="correction")
    op.drop_table("correction")
    op.drop_table("consultation_attempt")
    op.drop_index("uq_answer_current", table_name="answer", postgresql_where=sa.text("status = 'current'"))
    op.drop_index("ix_answer_rollout_id", table_name="answer")
    op.drop_table("answer")
    op.drop_index("ix_lesson_work", table_name="lesson")
    op.drop_index("ix_lesson_group_id", table_name="lesson")
    op.drop_table("lesson")
    op.drop_index("ix_consultation_work", table_name="consultation")
    op.drop_index("ix_consultation_expert_id_id", table_name="consultation")
    op.drop_table("consultation")
    op.drop_index("ix_rollout_task_id_id", table_name="rollout")
    op.drop_index("ix_rollout_open", table_name="rollout", postgresql_where=sa.text("status = 'open'"))
    op.drop_table("rollout")
    op.drop_index("ix_rollout_group_work", table_name="rollout_group")
    op.drop_index("ix_rollout_group_evaluation", table_name="rollout_group")
    op.drop_table("rollout_group")
    op.drop_index("uq_update_number", table_name="update", postgresql_where=sa.text("status IN ('started', 'applied')"))
    op.drop_table("update")
    op.drop_index("ix_task_messages", table_name="task")
    op.drop_index("ix_task_family", table_name="task")
    op.drop_index("ix_task_draw", table_name="task")
    op.drop_table("task")
    op.drop_index(
        "uq_policy_version_serving", table_name="policy_version", postgresql_where=sa.text("status = 'serving'")
    )
    op.drop_table("policy_version")
    op.drop_table("loop")
    op.drop_index("uq_expert_live_name", table_name="expert", postgresql_where=sa.text("status <> 'retired'"))
    op.drop_table("expert")
    op.drop_table("evaluation")
    op.drop_table("api_key")
    op.drop_table("status_change")
    op.drop_table("process")
    op.drop_table("person")
    op.drop_table("lineage")
    op.drop_table("idempotency")
    op.execute("DROP FUNCTION check_status_change")
