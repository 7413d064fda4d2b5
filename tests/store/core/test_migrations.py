"""What a migration makes of rows that are there already."""

import pytest
from alembic import command
from sqlalchemy import create_engine, text

from services.contracts.ids import new_id
from services.local.servers.postgres import EmbeddedPostgres
from services.store.core import migrate
from services.store.core.transaction import sqlalchemy_url
from tests.store.core.test_schema import empty_database

ROWS = """
INSERT INTO lineage (id, name, model, base_sha256, tokenizer_hash, vocab_size)
    VALUES (:lineage, 'main', 'tiny', 'b', 'a', 10);
INSERT INTO task (id, lineage_id, key, domain, family, split, messages, messages_sha256, metadata, content_sha256)
    VALUES (:task, :lineage, 't', 'math', 'f', 'train', '[]', 'm', '{"reference": "4"}', 'c');
INSERT INTO evaluation (id, lineage_id, policy_version, split, status, settings)
    VALUES (:probe, :lineage, 'base', 'train', 'running', '{"probe": "gap"}'),
           (:kept, :lineage, 'base', 'heldout', 'done', '{}');
INSERT INTO rollout_group (id, lineage_id, task_id, split, purpose, evaluation_id, size, sampling, status)
    VALUES (:drawn, :lineage, :task, 'train', 'probe', :probe, 1, '{"temperature": 1, "shown_solution": "4"}',
            'sampled'),
           (:planned, :lineage, :task, 'train', 'probe', :probe, 1, '{"temperature": 1}', 'pending');
INSERT INTO rollout (id, lineage_id, task_id, split, purpose, group_id, index_in_group, status, prompt_token_ids,
        token_ids, sampler_logprobs, action_mask, tokenizer_hash, text, finish_reason)
    VALUES (:rollout, :lineage, :task, 'train', 'probe', :drawn, 0, 'ready', '{1}', '{2}', '{-1}', '{true}', 'a', '4',
        'stop');
"""


@pytest.mark.integration
def test_gap_probes_end_and_what_their_teacher_drew_is_marked(postgres_server: EmbeddedPostgres) -> None:
    names = ("lineage", "task", "probe", "kept", "drawn", "planned", "rollout")
    ids = {name: new_id() for name in names}
    with empty_database(postgres_server, "with_gap_probes") as url:
        engine = create_engine(sqlalchemy_url(url))
        with engine.begin() as connection:
            config = migrate.config()
            config.attributes["connection"] = connection
            command.upgrade(config, "20261130_initial_schema")
            for statement in filter(str.strip, ROWS.split(";\n")):
                connection.execute(text(statement), ids)
        migrate.upgrade(url)
        with engine.connect() as connection:
            evaluations = connection.scalars(text("SELECT id FROM evaluation")).all()
            groups = connection.execute(text("SELECT id, status, evaluation_id, sampling FROM rollout_group")).all()
            rollouts = connection.execute(text("SELECT shown, sampler_logprobs FROM rollout")).all()
        engine.dispose()

    assert evaluations == [ids["kept"]]
    assert sorted(groups) == [
        (ids["drawn"], "sampled", None, {"temperature": 1}),
        (ids["planned"], "dead", None, {"temperature": 1}),
    ]
    assert rollouts == [(True, None)]
