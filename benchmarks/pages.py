"""How long pages take when the tables are large: fills a database by SQL alone, then asks for every page many times.

    python -m benchmarks.pages --database URL [--rollouts 1000000]        an empty database; it is migrated and filled

The filling needs a superuser. Eight rollouts a group, two consultations and answers a rollout, a lesson each, of
which nine in ten were used by an update of 64. Times are of whole requests in this process, from the route to the
last byte, one at a time. The database is left as it is: run again with --filled to measure without filling.

Not covered: many readers at once, and a database that is written to meanwhile.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence

from sqlalchemy import create_engine, text
from starlette.testclient import TestClient

from services.settings import Settings
from services.store import lineages, migrate, stats
from services.store.store import Store, sqlalchemy_url
from services.web.app import create_app

ROUNDS = 20
VERSION_EVERY = 20_000  # rollouts

# An id of a kind by its number: ordered by time as ours are, so that rows refer to each other by arithmetic.
NAME = """
CREATE OR REPLACE FUNCTION pg_temp.name(kind int, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM timestamptz '2026-01-01') * 1000)::bigint + n * 20), 12, '0') || '7'
        || lpad(to_hex(kind), 3, '0') || '8000' || lpad(to_hex(n), 12, '0'))::uuid $$
"""

STEPS = (
    """INSERT INTO task (id, lineage_id, key, domain, family, split, messages, messages_sha256, metadata,
                         content_sha256, num_groups)
       SELECT pg_temp.name(1, n), :lineage, 'task-' || n, 'math', 'family-' || n / 10, 'train',
              '[{"role": "user", "content": "What is 2+2?"}]', md5(n::text), '{}', md5(n::text), 1
       FROM generate_series(0, :rollouts / 80 - 1) AS n""",
    """INSERT INTO policy_version (id, lineage_id, number, name, status, artifact_sha256, update_number, served_at)
       SELECT pg_temp.name(2, n), :lineage, n, 'main-v' || n, 'superseded', 'a', n * :every / 64, now()
       FROM generate_series(1, :rollouts / :every) AS n""",
    """INSERT INTO expert (id, lineage_id, name, endpoint, version, descriptor, status, granted, trusted, weight,
                           report)
       SELECT pg_temp.name(3, n), :lineage, 'expert-' || n, 'http://127.0.0.1:1/' || n, '1',
              jsonb_build_object('name', 'expert-' || n, 'version', '1', 'kinds', '["score"]'::jsonb, 'domains',
                  '["*"]'::jsonb, 'deterministic', true, 'verifier', true),
              'active', '{}', true, 1, '{"endpoint": "", "descriptor": null, "checks": []}'
       FROM generate_series(0, 1) AS n""",
    """INSERT INTO rollout_group (id, lineage_id, task_id, split, purpose, policy_version, size, sampling, status)
       SELECT pg_temp.name(4, n), :lineage, pg_temp.name(1, n % (:rollouts / 80)), 'train', 'train',
              'main-v' || 1 + n * 8 / :every, 8, '{}', 'sampled'
       FROM generate_series(0, :rollouts / 8 - 1) AS n""",
    """INSERT INTO rollout (id, lineage_id, task_id, split, purpose, group_id, index_in_group, status, policy_version,
                            prompt_token_ids, token_ids, sampler_logprobs, action_mask, tokenizer_hash, sampling,
                            text, finish_reason, score, settled_at)
       SELECT pg_temp.name(5, n), :lineage, pg_temp.name(1, n / 8 % (:rollouts / 80)), 'train', 'train',
              pg_temp.name(4, n / 8), n % 8, 'ready', 'main-v' || 1 + n / :every,
              '{1,2,3,4}', '{5,6,7,8,9,10,11,12}', '{-1,-1,-1,-1,-1,-1,-1,-1}', '{t,t,t,t,t,t,t,t}', repeat('a', 64),
              '{"temperature": 1.0}', 'an answer of eight tokens', 'stop', (n * 7 % 10 < 6)::int, now()
       FROM generate_series(0, :rollouts - 1) AS n""",
    """INSERT INTO consultation (id, lineage_id, rollout_id, expert_id, expert_version, stage, ask, status, reason,
                                 attempts, deadline, settled_at)
       SELECT pg_temp.name(6, n), :lineage, pg_temp.name(5, n / 2), pg_temp.name(3, n % 2), '1', 1, '{}',
              CASE WHEN n % 1000 = 999 THEN 'dead' ELSE 'answered' END, 'connection refused', 1, now(), now()
       FROM generate_series(0, 2 * :rollouts - 1) AS n""",
    """INSERT INTO consultation_attempt (consultation_id, number, outcome, started_at, ended_at)
       SELECT pg_temp.name(6, n), 1, 'ok', now(), now() + n % 100 * interval '10 ms'
       FROM generate_series(0, 2 * :rollouts - 1) AS n""",
    """INSERT INTO answer (id, lineage_id, consultation_id, rollout_id, split, expert_id, expert_version, status, score)
       SELECT pg_temp.name(7, n), :lineage, pg_temp.name(6, n), pg_temp.name(5, n / 2), 'train',
              pg_temp.name(3, n % 2), '1', 'current', (n * 7 % 10 < 6)::int
       FROM generate_series(0, 2 * :rollouts - 1) AS n WHERE n % 1000 <> 999""",
    """INSERT INTO lesson (id, lineage_id, rollout_id, split, purpose, group_id, ordinal, status)
       SELECT pg_temp.name(8, n), :lineage, pg_temp.name(5, n), 'train', 'train', pg_temp.name(4, n / 8), 0,
              CASE WHEN n < :used THEN 'used' ELSE 'set_aside' END
       FROM generate_series(0, :rollouts - 65) AS n""",
    """INSERT INTO lesson (id, lineage_id, rollout_id, split, purpose, group_id, ordinal, status)
       SELECT pg_temp.name(8, n), :lineage, pg_temp.name(5, n), 'train', 'train', pg_temp.name(4, n / 8), 0, 'ready'
       FROM generate_series(:rollouts - 64, :rollouts - 1) AS n""",
    """INSERT INTO "update" (id, lineage_id, number, status, owner, objective, settings, metrics, checkpoint_sha256,
                             batch_sha256, applied_at)
       SELECT pg_temp.name(9, n), :lineage, n, 'applied', pg_temp.name(9, n), 'distil', '{}',
              jsonb_build_object('loss', 1.0 / n, 'kl', 0.5 / n, 'entropy', 0.4, 'pass_rate', 0.6, 'num_rows', 64,
                  'response_tokens', 8, 'seconds', 20), 'a', 'b', now()
       FROM generate_series(1, :used / 64) AS n""",
    """INSERT INTO update_lesson (update_id, lesson_id, status, terms, future_nonzero, staleness, token_costs)
       SELECT pg_temp.name(9, 1 + n / 64), pg_temp.name(8, n), 'applied',
              jsonb_build_array(jsonb_build_object('kind', 'conditioned', 'weight', 1, 'share', 1 / 64.0, 'cost', 0.4,
                  'num_tokens', 8, 'sources', '["expert-0"]'::jsonb,
                  'answers', jsonb_build_array(pg_temp.name(7, n * 2)))), true, 1, '{.1,.2,.3,.4,.5,.6,.7,.8}'
       FROM generate_series(0, :used / 64 * 64 - 1) AS n""",
    """INSERT INTO tally SELECT lineage_id, 'task', domain, split, count(*) FROM task GROUP BY 1, 3, 4""",
    """INSERT INTO tally SELECT lineage_id, 'rollout_group', purpose, status, count(*) FROM rollout_group
       GROUP BY 1, 3, 4""",
    """INSERT INTO tally SELECT lineage_id, 'rollout', purpose, status, count(*) FROM rollout GROUP BY 1, 3, 4""",
    """INSERT INTO tally SELECT lineage_id, 'verdict', policy_version, CASE WHEN score > 0.5 THEN 'passed' ELSE 'failed'
              END, count(*) FROM rollout GROUP BY 1, 3, 4""",
    """INSERT INTO tally SELECT lineage_id, 'consultation', expert_id::text, status, count(*) FROM consultation
       GROUP BY 1, 3, 4""",
    """INSERT INTO tally SELECT lineage_id, 'lesson', '', status, count(*) FROM lesson GROUP BY 1, 3, 4""",
    "ANALYZE",
)


def fill(url: str, num_rollouts: int) -> None:
    """Migrate and fill an empty database."""
    migrate.upgrade(url)
    store = Store(url)
    with store.transaction() as session:
        lineage = lineages.ensure(session, "main", "tiny", "b" * 64, "a" * 64, 1000)
    engine = create_engine(sqlalchemy_url(url))
    values = {
        "lineage": lineage.id,
        "rollouts": num_rollouts,
        "every": VERSION_EVERY,
        "used": num_rollouts * 9 // 10 // 64 * 64,
    }
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # What is made here refers to what exists, and is counted in the end: no trigger need look at every row.
        connection.execute(text("SET session_replication_role = replica"))
        connection.execute(text(NAME))
        for step in STEPS:
            began = time.perf_counter()
            connection.execute(text(step), values)
            _say(f"  {time.perf_counter() - began:6.1f} s  {' '.join(step.split())[:60]}")
    engine.dispose()
    store.close()


def measure(url: str) -> Iterator[tuple[str, list[float]]]:
    """Every page with the seconds of its requests, the first of which is not counted."""
    store = Store(url)
    with store.transaction() as session:
        lineage = lineages.get(session, "main")
        names = ("rollout", "task", "expert", "evaluation")
        found = {
            name: session.scalar(text(f'SELECT id FROM "{name}" ORDER BY id DESC OFFSET 70 LIMIT 1'))  # noqa: S608
            or session.scalar(text(f'SELECT id FROM "{name}" LIMIT 1'))  # noqa: S608
            for name in names
        }
        version, number = (
            session.scalar(text("SELECT name FROM policy_version ORDER BY number DESC LIMIT 1")),
            session.scalar(text('SELECT max(number) FROM "update"')),
        )
    yield "status, as every second", list(_time_status(store, lineage.name))
    store.close()
    old = "/rollouts?cursor=AZt0gACgcAWAAAAAAAAAgA"  # near the oldest
    paths = [
        "/",
        "/overview/now",
        "/overview/curves",
        "/tasks",
        f"/tasks/{found['task']}",
        "/rollouts",
        "/rollouts?status=set_aside",
        "/rollouts?purpose=evaluation",
        "/rollouts?version=main-v1",
        old,
        f"/rollouts/{found['rollout']}",
        "/experts",
        f"/experts/{found['expert']}",
        "/policies",
        f"/policies/{version}",
        "/evaluations",
        "/updates",
        f"/updates/{number}",
        "/dead",
    ]
    settings = Settings.model_validate({"database_url": url, "api_open": True})
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        for path in paths:
            seconds = []
            for _ in range(ROUNDS + 1):
                began = time.perf_counter()
                answer = client.get(path)
                seconds.append(time.perf_counter() - began)
                if answer.status_code != 200:
                    raise RuntimeError(f"{path}: {answer.status_code} {answer.text[:500]}")
            yield path, seconds[1:]


def _time_status(store: Store, lineage: str) -> Iterator[float]:
    for _ in range(ROUNDS):
        began = time.perf_counter()
        with store.transaction() as session:
            stats.status(session, lineages.get(session, lineage), max_backlog=64, max_groups_per_task=8, group_size=8)
        yield time.perf_counter() - began


def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__.splitlines()[0])
    parser.add_argument("--database", required=True, help="URL of an empty database")
    parser.add_argument("--rollouts", type=int, default=1_000_000)
    parser.add_argument("--filled", action="store_true", help="it was filled by an earlier run")
    options = parser.parse_args(arguments)
    if not options.filled:
        fill(options.database, options.rollouts)
    _say(f"{'page':<60} {'median':>8} {'p95':>8}")
    for path, seconds in measure(options.database):
        p95 = statistics.quantiles(seconds, n=20)[-1]
        _say(f"{path[:60]:<60} {1000 * statistics.median(seconds):5.0f} ms {1000 * p95:5.0f} ms")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
