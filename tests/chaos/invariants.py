"""The invariants that hold whatever was killed, frozen or flooded, as SQL: each query returns the rows that break one.

`find_violations` asks all of them once the loop has run dry. Each name is the sentence that is true of no row.
"""

from sqlalchemy import text

from services.store.core.transaction import Store
from services.store.corrections.effects import MAX_FAILURES
from services.store.tables.schema import METADATA

_WITH_A_REASON = (
    ("rollout", "set_aside"),
    ("rollout_group", "dead"),
    ("consultation", "dead"),
    ("consultation", "invalid"),
    ("lesson", "set_aside"),
    ("lesson", "invalid"),
    ("lesson", "withdrawn"),
    ("update", "abandoned"),
    ("policy_version", "rejected"),
    ("correction_effect", "gone"),
    ("measurement", "abandoned"),
    ("measurement", "lapsed"),
)

STATUSES = {
    "a group is neither sampled nor dead": "SELECT id FROM rollout_group WHERE status IN ('pending', 'asked')",
    "a rollout is open": "SELECT id FROM rollout WHERE status = 'open'",
    "a lesson is open, ready or claimed": "SELECT id FROM lesson WHERE status IN ('open', 'ready', 'claimed')",
    "an update is started": "SELECT id FROM \"update\" WHERE status = 'started'",
    "a version is a candidate": "SELECT id FROM policy_version WHERE status = 'candidate'",
    "an evaluation is running": "SELECT id FROM evaluation WHERE status = 'running'",
    "a source teaches though a lower bound of it is not above 0": (
        "SELECT id FROM measurement WHERE status = 'teaches' "
        "AND (coalesce(gap_low, 0) <= 0 OR (net_low IS NULL AND source <> 'distribution') OR net_low <= 0)"
    ),
    "an effect is pending though nobody will try it again": (
        f"SELECT id FROM correction_effect WHERE status = 'pending' AND failures >= {MAX_FAILURES}"  # noqa: S608
    ),
    "an active expert's question is pending or asked": (
        "SELECT c.id FROM consultation c JOIN expert e ON e.id = c.expert_id "
        "WHERE c.status IN ('pending', 'asked') AND e.status = 'active'"
    ),
    **{
        f"a row of {noun} is {status} without a reason": (
            f"SELECT id FROM \"{noun}\" WHERE status = '{status}' AND reason IS NULL"  # noqa: S608 - the words above
        )
        for noun, status in _WITH_A_REASON
    },
}

SETTLED_ONCE = {
    "a question has two answers that count": (
        "SELECT consultation_id FROM answer WHERE status = 'current' GROUP BY 1 HAVING count(*) > 1"
    ),
    "an answered question has no answer": (
        "SELECT id FROM consultation c WHERE status = 'answered' "
        "AND NOT EXISTS (SELECT FROM answer a WHERE a.consultation_id = c.id)"
    ),
    "a question that was not answered has an answer that counts": (
        "SELECT c.id FROM consultation c JOIN answer a ON a.consultation_id = c.id "
        "WHERE a.status = 'current' AND c.status <> 'answered'"
    ),
    "a settled question says not when": (
        "SELECT id FROM consultation WHERE settled_at IS NULL "
        "AND status IN ('answered', 'abstained', 'invalid', 'dead')"
    ),
    "a question succeeded twice": (
        "SELECT consultation_id FROM consultation_attempt WHERE outcome = 'ok' GROUP BY 1 HAVING count(*) > 1"
    ),
    "a question's tries have gaps": (
        "SELECT c.id FROM consultation c JOIN consultation_attempt t ON t.consultation_id = c.id "
        "GROUP BY c.id HAVING max(t.number) <> count(*) OR max(t.number) <> c.attempts"
    ),
    "a train task was not drawn": (
        "SELECT id FROM task t WHERE split = 'train' AND NOT EXISTS "
        "(SELECT FROM rollout_group g WHERE g.task_id = t.id AND g.status IN ('sampled', 'dead'))"
    ),
    "a drawn group lacks rollouts, or has too many": (
        "SELECT g.id FROM rollout_group g LEFT JOIN rollout r ON r.group_id = g.id WHERE g.status = 'sampled' "
        "GROUP BY g.id HAVING count(r.id) <> g.size OR max(r.index_in_group) <> g.size - 1"
    ),
    "a lesson counts in two updates": (
        'SELECT l.lesson_id FROM update_lesson l JOIN "update" u ON u.id = l.update_id '
        "WHERE u.status = 'applied' AND l.status = 'applied' GROUP BY 1 HAVING count(*) > 1"
    ),
    "a used lesson is in no applied update": (
        "SELECT id FROM lesson WHERE status = 'used' AND NOT EXISTS (SELECT FROM update_lesson l "
        'JOIN "update" u ON u.id = l.update_id WHERE l.lesson_id = lesson.id '
        "AND l.status = 'applied' AND u.status = 'applied')"
    ),
    "a lesson that an update counts is not used": (
        "SELECT l.id FROM lesson l JOIN update_lesson u ON u.lesson_id = l.id "
        "WHERE u.status = 'applied' AND l.status NOT IN ('used', 'withdrawn')"
    ),
    "a lesson's answer is of another rollout": (
        "SELECT x.lesson_id FROM lesson_answer x JOIN lesson l ON l.id = x.lesson_id "
        "JOIN answer a ON a.id = x.answer_id WHERE a.rollout_id <> l.rollout_id"
    ),
    "a decided item has two answers that count, or none": (
        "SELECT c.id FROM correction c LEFT JOIN answer a ON a.consultation_id = c.consultation_id "
        "AND a.status = 'current' WHERE c.status = 'submitted' GROUP BY c.id HAVING count(a.id) <> 1"
    ),
}

NUMBERS = {
    "the lessons of a rollout are not numbered without gaps": (
        "SELECT rollout_id FROM lesson GROUP BY 1 "
        "HAVING max(ordinal) - min(ordinal) + 1 <> count(*) OR count(DISTINCT ordinal) <> count(*)"
    ),
    "applied updates are not numbered from 1 without gaps": (
        "SELECT lineage_id FROM \"update\" WHERE status = 'applied' GROUP BY 1 "
        "HAVING min(number) <> 1 OR max(number) <> count(*)"
    ),
    "versions are not numbered from 0 without gaps": (
        "SELECT lineage_id FROM policy_version GROUP BY 1 HAVING min(number) <> 0 OR max(number) + 1 <> count(*)"
    ),
    "a lineage has not one serving version": (
        "SELECT l.id FROM lineage l LEFT JOIN policy_version v ON v.lineage_id = l.id AND v.status = 'serving' "
        "GROUP BY l.id HAVING count(v.id) <> 1"
    ),
    "a version is of no applied update": (
        'SELECT v.id FROM policy_version v WHERE v.number > 0 AND NOT EXISTS (SELECT FROM "update" u '
        "WHERE u.lineage_id = v.lineage_id AND u.number = v.update_number AND u.status = 'applied')"
    ),
    "an update starts neither from the one before it nor from a fallback after that one": (
        "SELECT u.id FROM \"update\" u WHERE u.status = 'applied' AND u.number > 1 AND NOT EXISTS "
        "(SELECT FROM \"update\" p WHERE p.lineage_id = u.lineage_id AND p.status = 'applied' "
        "AND p.number = u.number - 1 AND u.fell_back_to IS NULL AND p.checkpoint_sha256 = u.parent_sha256) "
        "AND NOT EXISTS (SELECT FROM fallback f JOIN policy_version v ON v.id = f.version_id "
        "WHERE f.lineage_id = u.lineage_id AND f.after_update = u.number - 1 "
        "AND v.name = u.fell_back_to AND f.checkpoint_sha256 = u.parent_sha256)"
    ),
}

TRUST = {
    "words of an expert that is not active are in a term's context": (
        "SELECT l.lesson_id FROM update_lesson l CROSS JOIN LATERAL jsonb_array_elements(l.terms) term "
        "CROSS JOIN LATERAL jsonb_array_elements_text(term -> 'answers') named "
        "JOIN answer a ON a.id = named::uuid JOIN expert e ON e.id = a.expert_id WHERE e.status <> 'active'"
    ),
    "words given on probation are in a term's context": (
        "SELECT l.lesson_id FROM update_lesson l CROSS JOIN LATERAL jsonb_array_elements(l.terms) term "
        "CROSS JOIN LATERAL jsonb_array_elements_text(term -> 'answers') named "
        "JOIN answer a ON a.id = named::uuid WHERE NOT a.could_train"
    ),
    "an expert was shown words of one that is not active": (
        "SELECT c.id FROM consultation c JOIN answer a ON a.id = ANY(c.shown) "
        "JOIN expert e ON e.id = a.expert_id WHERE e.status <> 'active' OR NOT a.could_train"
    ),
    "an expert was shown words that quote metadata it was not granted": (
        "SELECT c.id FROM consultation c JOIN expert e ON e.id = c.expert_id "
        "JOIN answer a ON a.id = ANY(c.shown) WHERE NOT a.derived_from <@ e.granted"
    ),
    "a rollout's score is of no expert whose verdict counts": (
        "SELECT r.id FROM rollout r WHERE r.score IS NOT NULL AND NOT EXISTS (SELECT FROM answer a "
        "JOIN expert e ON e.id = a.expert_id WHERE a.rollout_id = r.id AND a.score IS NOT NULL "
        "AND a.could_train AND e.status = 'active')"
    ),
    "a heldout task trained": (
        "SELECT l.id FROM lesson l JOIN rollout r ON r.id = l.rollout_id JOIN task t ON t.id = r.task_id "
        "WHERE t.split <> 'train'"
    ),
}

COUNTS = {
    f"the tally of {noun}s is not their number": (
        f"SELECT word, sum(num) FROM (SELECT lineage_id, status AS word, 1 AS num FROM {noun} UNION ALL "  # noqa: S608
        f"SELECT lineage_id, word, -num FROM tally WHERE noun = '{noun}' UNION ALL "
        f"SELECT lineage_id, word, -num FROM tally_change WHERE noun = '{noun}') difference "
        "GROUP BY lineage_id, word HAVING sum(num) <> 0"
    )
    for noun in ("rollout", "rollout_group", "consultation", "lesson", "correction")
}

INVARIANTS = {**STATUSES, **SETTLED_ONCE, **NUMBERS, **TRUST, **COUNTS}
"""What must never be, and the query that finds it."""


def find_violations(store: Store) -> dict[str, int]:
    """The invariants that do not hold, with the number of rows that break each; empty when all hold."""
    found = {}
    with store.transaction() as session:
        for sentence, query in INVARIANTS.items():
            num_rows = len(session.execute(text(query)).all())
            if num_rows:
                found[sentence] = num_rows
    return found


def find_uncovered() -> set[str]:
    """Tables with a status that no invariant reads: a new one needs a line above."""
    with_status = {name for name, table in METADATA.tables.items() if "status" in table.columns}
    return {name for name in with_status if not any(name in query for query in INVARIANTS.values())}
