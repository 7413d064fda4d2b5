"""A database after a million rollouts, put together by the database itself.

Proportions of a loop that has run for a while: 8 rollouts a group, three questions each of which two are answered, a
lesson with both answers, 48 lessons an update, a policy version every fourth update, one correction for 100 rollouts.
An eighth of the groups evaluate on held-out tasks. Rollouts have 64 tokens, so that a million of them fit on a laptop.
"""

import time
from typing import Final

import psycopg
from psycopg import sql

from benchmarks.api.policy import TOKENIZER
from benchmarks.api.stage import Stage

NUM_TASKS: Final = 3_000
CHUNK: Final = 100_000
TABLES: Final = (
    *("task", "rollout_group", "rollout", "consultation", "consultation_attempt", "answer", "lesson", "lesson_answer"),
    *("update", "update_lesson", "policy_version", "correction"),
)

# Ids as the product makes them: time first, so that a later row sorts later. One a millisecond and noun.
IDS: Final = """
CREATE OR REPLACE FUNCTION pg_temp.id_of(noun int, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
SELECT (lpad(to_hex(1780000000000 + n), 12, '0') || '7000' || '8' || lpad(to_hex(noun), 3, '0')
        || lpad(to_hex(n), 12, '0'))::uuid $$
"""

STEPS: Final = (
    """INSERT INTO task (id, lineage_id, key, domain, family, split, messages, messages_sha256, metadata,
        content_sha256, num_groups, created_at)
    SELECT pg_temp.id_of(1, n), %(lineage)s, 'filled-' || n, (ARRAY['math', 'code/python', 'tool-call'])[1 + n %% 3],
        'family-' || n %% 50, CASE WHEN n %% 8 = 7 THEN 'heldout' ELSE 'train' END,
        jsonb_build_array(jsonb_build_object('role', 'user', 'content', 'Question ' || n || repeat(' more', 40))),
        md5('m' || n), '{"answer": "4"}', md5('c' || n), 0, now() - interval '9 days'
    FROM generate_series(0, %(tasks)s - 1) AS n WHERE %(first)s = 0""",
    """INSERT INTO rollout_group (id, lineage_id, task_id, split, purpose, policy_version, size, sampling, status,
        attempts, created_at)
    SELECT pg_temp.id_of(2, g * 8), %(lineage)s, pg_temp.id_of(1, t),
        CASE WHEN t %% 8 = 7 THEN 'heldout' ELSE 'train' END,
        CASE WHEN t %% 8 = 7 THEN 'evaluation' ELSE 'train' END, 'v' || g * 8 / 192, 8, '{"temperature": 1.0}',
        CASE WHEN g %% 997 = 0 THEN 'dead' ELSE 'sampled' END, 1, now() - make_interval(secs => (%(all)s - g * 8) * 0.2)
    FROM (SELECT g, g %% %(tasks)s AS t FROM generate_series(%(first)s / 8, %(last)s / 8 - 1) AS g) AS groups""",
    """INSERT INTO rollout (id, lineage_id, task_id, split, purpose, group_id, index_in_group, status, reason,
        policy_version, prompt_token_ids, token_ids, sampler_logprobs, action_mask, tokenizer_hash, sampling, text,
        finish_reason, score, created_at, settled_at)
    SELECT pg_temp.id_of(3, n), %(lineage)s, pg_temp.id_of(1, t), CASE WHEN t %% 8 = 7 THEN 'heldout' ELSE 'train' END,
        CASE WHEN t %% 8 = 7 THEN 'evaluation' ELSE 'train' END, pg_temp.id_of(2, n / 8 * 8), n %% 8, status,
        CASE WHEN status = 'set_aside' THEN 'no expert answered' END, 'v' || n / 192,
        array_fill(7, ARRAY[40]), array_fill((n %% 40000)::int, ARRAY[64]), array_fill(-0.5::real, ARRAY[64]),
        array_fill(true, ARRAY[64]), %(tokenizer)s, '{"temperature": 1.0}',
        'The answer of rollout ' || n || repeat(' is so', 30),
        'stop', CASE WHEN status = 'ready' THEN (n %% 5 < 2)::int END, at, CASE WHEN status <> 'open' THEN at END
    FROM (SELECT n, n / 8 %% %(tasks)s AS t, now() - make_interval(secs => (%(all)s - n) * 0.2) AS at,
            CASE WHEN n > %(all)s - 200 THEN 'open' WHEN n %% 50 = 0 THEN 'set_aside' ELSE 'ready' END AS status
          FROM generate_series(%(first)s, %(last)s - 1) AS n) AS rollouts""",
    """INSERT INTO consultation (id, lineage_id, rollout_id, expert_id, expert_version, stage, ask, status, reason,
        attempts, sent_at, deadline, created_at, settled_at)
    SELECT pg_temp.id_of(4, n * 3 + e), %(lineage)s, pg_temp.id_of(3, n), (%(experts)s::uuid[])[e + 1], '1', 1,
        '{"kinds": ["score"]}', status, CASE WHEN status IN ('dead', 'abstained', 'invalid') THEN 'a reason' END, 1,
        at, at + interval '30 minutes', at, CASE WHEN status NOT IN ('pending', 'waiting') THEN at END
    FROM (SELECT n, e, now() - make_interval(secs => (%(all)s - n) * 0.2) AS at,
            CASE WHEN n > %(all)s - 200 THEN 'pending' WHEN e < 2 THEN 'answered' WHEN n %% 200 = 0 THEN 'dead'
                 WHEN n %% 50 = 1 THEN 'waiting' WHEN n %% 50 = 2 THEN 'invalid' ELSE 'abstained' END AS status
          FROM generate_series(%(first)s, %(last)s - 1) AS n, generate_series(0, 2) AS e) AS questions""",
    """INSERT INTO consultation_attempt (consultation_id, number, outcome, started_at, ended_at)
    SELECT pg_temp.id_of(4, n * 3 + e), 1, 'ok', now(), now()
    FROM generate_series(%(first)s, least(%(last)s, %(all)s - 200) - 1) AS n, generate_series(0, 2) AS e""",
    """INSERT INTO answer (id, lineage_id, consultation_id, rollout_id, split, expert_id, expert_version, status,
        score, feedback, created_at)
    SELECT pg_temp.id_of(5, n * 3 + e), %(lineage)s, pg_temp.id_of(4, n * 3 + e), pg_temp.id_of(3, n),
        CASE WHEN n / 8 %% %(tasks)s %% 8 = 7 THEN 'heldout' ELSE 'train' END, (%(experts)s::uuid[])[e + 1], '1',
        'current', (n %% 5 < 2)::int, '{"text": "expected 4, got 5", "spans": []}',
        now() - make_interval(secs => (%(all)s - n) * 0.2)
    FROM generate_series(%(first)s, least(%(last)s, %(all)s - 200) - 1) AS n, generate_series(0, 1) AS e""",
    """INSERT INTO lesson (id, lineage_id, rollout_id, split, purpose, group_id, ordinal, status, created_at)
    SELECT pg_temp.id_of(6, n), %(lineage)s, pg_temp.id_of(3, n), 'train', 'train', pg_temp.id_of(2, n / 8 * 8), 0,
        CASE WHEN n > %(all)s - 1000 THEN 'ready' ELSE 'used' END, now() - make_interval(secs => (%(all)s - n) * 0.2)
    FROM generate_series(%(first)s, least(%(last)s, %(all)s - 200) - 1) AS n
    WHERE n / 8 %% %(tasks)s %% 8 <> 7 AND n %% 50 <> 0""",
    """INSERT INTO lesson_answer (lesson_id, answer_id)
    SELECT pg_temp.id_of(6, n), pg_temp.id_of(5, n * 3 + e)
    FROM generate_series(%(first)s, least(%(last)s, %(all)s - 200) - 1) AS n, generate_series(0, 1) AS e
    WHERE n / 8 %% %(tasks)s %% 8 <> 7 AND n %% 50 <> 0""",
    """INSERT INTO update (id, lineage_id, number, status, owner, objective, settings, metrics, checkpoint_sha256,
        batch_sha256, started_at, applied_at)
    SELECT pg_temp.id_of(7, u), %(lineage)s, u + 1, 'applied', pg_temp.id_of(9, 0), 'distil', '{}',
        jsonb_build_object('loss', 1.0 / (1 + u), 'cross_entropy', 2.0 / (1 + u), 'grad_norm', 0.5, 'num_lessons', 48),
        md5('k' || u), md5('b' || u), at, at
    FROM (SELECT u, now() - make_interval(secs => (%(all)s - u * 48) * 0.2) AS at
          FROM generate_series(%(first)s / 48 + (%(first)s > 0)::int, least(%(last)s, %(all)s - 1000) / 48) AS u
    ) AS updates""",
    """INSERT INTO update_lesson (update_id, lesson_id, status, terms, staleness, token_costs)
    SELECT pg_temp.id_of(7, n / 48), pg_temp.id_of(6, n), 'applied', '[]', 1, array_fill(0.5::real, ARRAY[64])
    FROM generate_series(%(first)s, least(%(last)s, %(all)s - 1000) - 1) AS n
    WHERE n / 8 %% %(tasks)s %% 8 <> 7 AND n %% 50 <> 0""",
    """INSERT INTO policy_version (id, lineage_id, number, name, status, artifact_sha256, update_number,
        created_at)
    SELECT pg_temp.id_of(8, v), %(lineage)s, v + 1, 'v' || v, 'superseded', md5('a' || v), v * 4,
        now() - make_interval(secs => (%(all)s - v * 192) * 0.2)
    FROM generate_series(%(first)s / 192 + (%(first)s > 0)::int, %(last)s / 192) AS v""",
    """INSERT INTO correction (id, lineage_id, consultation_id, rollout_id, split, status, priority, person_id, verdict,
        text, created_at, decided_at)
    SELECT pg_temp.id_of(10, n), %(lineage)s, pg_temp.id_of(4, n * 3 + 2), pg_temp.id_of(3, n), 'train',
        CASE WHEN n %% 500 = 0 THEN 'open' ELSE 'submitted' END, n %% 7, (SELECT min(id::text)::uuid FROM person),
        CASE WHEN n %% 500 <> 0 THEN 'corrected' END, CASE WHEN n %% 500 <> 0 THEN '4' END, now(), now()
    FROM generate_series(%(first)s, %(last)s - 1, 100) AS n WHERE n / 8 %% %(tasks)s %% 8 <> 7""",
)


def fill(stage: Stage, num_rollouts: int) -> float:
    """Fill the database, as autovacuum would leave it; returns the seconds it took."""
    began = time.monotonic()
    url = stage.postgres.url.replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(url, autocommit=True) as connection:
        # What the rows refer to is there by construction; the tallies of the pages are kept as ever.
        connection.execute("SET session_replication_role = replica")
        connection.execute("SET synchronous_commit = off")
        for table, trigger in _find_tallies(connection):
            enable = "ALTER TABLE {} ENABLE ALWAYS TRIGGER {}"
            connection.execute(sql.SQL(enable).format(sql.Identifier(table), sql.Identifier(trigger)))
        connection.execute(IDS)
        experts = [row[0] for row in connection.execute("SELECT id FROM expert ORDER BY id LIMIT 3")]
        for first in range(0, num_rollouts, CHUNK):
            given = {
                "lineage": stage.lineage_id,
                "tokenizer": TOKENIZER,
                "experts": experts,
                "tasks": NUM_TASKS,
                "all": num_rollouts,
                "first": first,
                "last": min(first + CHUNK, num_rollouts),
            }
            for step in STEPS:
                connection.execute(step, given)
        connection.execute("VACUUM ANALYZE")
    return time.monotonic() - began


def _find_tallies(connection: "psycopg.Connection[tuple[str, str]]") -> list[tuple[str, str]]:
    query = "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE tgname LIKE 'tally\\_%\\_added'"
    return [(table.strip('"'), trigger) for table, trigger in connection.execute(query).fetchall()]
