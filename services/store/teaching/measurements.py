"""Measurements: rounds of tasks drawn by student, teacher and control at one temperature, until a look decides.

A round of a domain draws its tasks from the student once, for every measurement of the domain that needs tasks; the
experts to be measured are asked about half of these answers. When all that is settled, each measurement that has
something to show about a task draws the task twice more: after it, and after its control. When all of those are judged,
measurements with enough tasks look at them (`sequential_test`). One version of the policy draws all three arms of a
task. A verdict that a source teaches lapses when no new measurement has decided for too long.

The sweep takes one step at a time. What is drawn is bounded by a share of all rollouts, and by tokens for each
measurement; measurements that a person asked for are for a time bounded by their tokens alone.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerKind
from services.contracts.base import check_change
from services.contracts.consultations import ConsultationStatus
from services.contracts.experts import Descriptor, ExpertStatus
from services.contracts.measurements import (
    LOOKS,
    MEASUREMENT_CHANGES,
    Measurement,
    MeasurementCreate,
    MeasurementStatus,
)
from services.contracts.rollouts import Purpose, Sampling
from services.contracts.sources import Arm, ContextSource, templates_of
from services.contracts.tasks import Split
from services.runtime.errors import InvalidInput, NotFound
from services.store.core import row_counts
from services.store.ledger import policies
from services.store.loop import groups, tasks, trust
from services.store.tables.loop import ConsultationRow, ExpertRow, GroupRow, RolloutRow, TaskRow
from services.store.tables.teaching import MeasuredTaskRow, MeasurementRow
from services.store.teaching import arms, candidates, consequences, material, mixing
from services.store.teaching.arms import Shown
from services.store.teaching.candidates import Ages
from services.store.teaching.material import Material
from services.store.teaching.sequential_test import LEVEL, Bounds, Decision, decide, find_bounds, one_sided

TASKS_PER_ROUND: Final = 8
STUDENT_ANSWERS: Final = 8
SHOWN_ANSWERS: Final = 4
"""Of teacher and control each: tasks, not answers, are what a measurement needs many of."""
MOST_UNDER_WAY: Final = 2
"""Measurements of one domain at once that the sweep begins: they share the student's answers."""
MOST_CANDIDATES: Final = 256
"""Tasks of a domain among which a round is chosen."""


class NothingToMeasure(InvalidInput):
    """No source could be measured."""

    hint = "A domain needs train tasks, an active verifier, and an expert that gives more than scores."


class MeasurementNotFound(NotFound):
    """No measurement with this id."""


@dataclass(frozen=True)
class Rules:
    """How measurements are drawn, and how much. share: of all rollouts, at most; max_tokens: of one measurement.
    num_precedents: shown together."""

    sampling: Sampling
    seed: int
    share: float
    max_tokens: int
    num_precedents: int
    ages: Ages
    promote: bool


def advance(session: Session, lineage_id: UUID, rules: Rules, *, is_sampling: bool, may_draw: bool) -> None:
    """One step of every domain. is_sampling: the loop draws; may_draw: no disk is nearly full."""
    experts = candidates.find_experts(session, lineage_id)
    for domain in candidates.find_domains(session, lineage_id):
        measuring = [row for row in candidates.under_way(session, lineage_id, domain) if not _is_gone(session, row)]
        waiting = candidates.find_waiting(session, measuring)
        changed = [row for row in measuring if _look(session, row, rules)]
        measuring = [row for row in measuring if row not in changed]
        changed += _let_lapse(session, lineage_id, domain, rules.ages)
        if may_draw:
            _plan_arms(session, lineage_id, measuring, rules)
            changed += _begin_round(session, lineage_id, domain, measuring, rules, is_sampling)
            if is_sampling:
                _begin_due(session, lineage_id, domain, experts, rules)
        new = candidates.find_waiting(session, measuring) - waiting
        changed += [row for row in measuring if row.id in new]
        if changed:
            consequences.apply(session, {row.expert_id for row in changed}, promote=rules.promote)


def ask(session: Session, lineage_id: UUID, rules: Rules, wanted: MeasurementCreate) -> list[MeasurementRow]:
    """Measure these sources now, whether or not they are due; those already under way go on as if asked for.

    Errors: NothingToMeasure (422).
    """
    found: list[MeasurementRow] = []
    experts = candidates.find_experts(session, lineage_id)
    for domain in candidates.find_domains(session, lineage_id):
        if wanted.domain not in (None, domain):
            continue
        keys = [
            key
            for key in candidates.find_keys(session, experts, domain)
            if wanted.expert_id in (None, key.expert_id)
            and wanted.source in (None, key.source)
            and wanted.template in (None, key.template)
        ]
        begun = {candidates.key_of(row): row for row in candidates.under_way(session, lineage_id, domain)}
        asked = [begun[key] for key in keys if key in begun]
        new = [key for key in keys if key not in begun]
        asked += candidates.begin(session, lineage_id, domain, new, rules.sampling.temperature)
        for row in asked:
            row.asked_until, row.reason = func.now() + timedelta(minutes=wanted.minutes), None
        found += asked
    if not found:
        raise NothingToMeasure("nothing of the kind can be measured")
    session.flush()
    return found


def stop(session: Session, measurement_id: UUID) -> MeasurementRow:
    """End it without a verdict, so that what was decided before holds; the loop begins it again once it is due.

    Errors: MeasurementNotFound, IllegalStatusChange when it has ended.
    """
    row = session.get(MeasurementRow, measurement_id, with_for_update=True, populate_existing=True)
    if row is None:
        raise MeasurementNotFound(f"no measurement {measurement_id}")
    check_change(MEASUREMENT_CHANGES, MeasurementStatus(row.status), MeasurementStatus.ABANDONED)
    _end(row, MeasurementStatus.ABANDONED, "stopped by hand")
    session.flush()
    session.refresh(row)
    return row


def view(row: MeasurementRow) -> Measurement:
    """The contract of a row."""
    return Measurement.model_validate(row)


def _is_gone(session: Session, row: MeasurementRow) -> bool:
    """Whether its expert has retired, which abandons it."""
    expert = session.get_one(ExpertRow, row.expert_id)
    if expert.status != ExpertStatus.RETIRED.value:
        return False
    _end(row, MeasurementStatus.ABANDONED, "the expert has retired")
    return True


def _let_lapse(session: Session, lineage_id: UUID, domain: str, ages: Ages) -> list[MeasurementRow]:
    """Let verdicts lapse that are too old; these."""
    found = candidates.find_lapsed(session, lineage_id, domain, ages)
    far = ages * candidates.LAPSE
    for row in found:
        row.status = MeasurementStatus.LAPSED.value
        row.reason = f"not decided again within {far.versions:,} versions of the policy and {far.answers:,} answers"
    session.flush()
    return found


def _has_room(session: Session, lineage_id: UUID, rules: Rules) -> bool:
    """Whether measuring has had less than its share of all rollouts."""
    drawn = row_counts.by_kind(row_counts.read(session, lineage_id, ("rollout",))["rollout"])
    measured, trained = (sum(drawn.get(purpose.value, {}).values()) for purpose in (Purpose.PROBE, Purpose.TRAIN))
    return measured < rules.share * (measured + trained)


def _begin_due(
    session: Session, lineage_id: UUID, domain: str, experts: Sequence[candidates.Candidate], rules: Rules
) -> None:
    """Begin measurements that are due: all that draw nothing, and as many others as there is room for."""
    measuring = candidates.under_way(session, lineage_id, domain)
    waiting = candidates.find_waiting(session, measuring)
    room = MOST_UNDER_WAY - sum(_draws(row) and row.id not in waiting for row in measuring)
    keys = candidates.find_keys(session, experts, domain)
    due = candidates.keep_due(session, lineage_id, domain, keys, rules.ages)
    drawing = [key for key in due if key.source is not ContextSource.DISTRIBUTION]
    chosen = [key for key in due if key not in drawing] + drawing[: max(0, room)]
    candidates.begin(session, lineage_id, domain, chosen, rules.sampling.temperature)


def _draws(row: MeasurementRow) -> bool:
    return row.source != ContextSource.DISTRIBUTION.value


# --- a round ---


def _begin_round(
    session: Session,
    lineage_id: UUID,
    domain: str,
    measuring: Sequence[MeasurementRow],
    rules: Rules,
    is_sampling: bool,
) -> list[MeasurementRow]:
    """Draw the next tasks from the student, once no draw of the domain's measurements is under way; returns the
    measurements that ended because no task is left for them."""
    drawing = [row for row in measuring if _draws(row)]
    version = policies.serving(session, lineage_id)
    if version is None:
        return []
    begun = _count_tasks(session, drawing)
    if any(begun.get(row.id, 0) > row.num_tasks for row in drawing):
        return []
    has_room = is_sampling and _has_room(session, lineage_id, rules)
    now = session.scalars(select(func.now())).one()
    is_asked = {row.id: row.asked_until is not None and row.asked_until > now for row in drawing}
    waiting = candidates.find_waiting(session, drawing)
    needy = [row for row in drawing if (is_asked[row.id] or has_room) and row.id not in waiting]
    if not needy:
        return []
    num_drawn = _count_drawn(session, lineage_id)
    chosen = _choose_tasks(session, lineage_id, domain, needy, num_drawn, rules.seed)
    for task, wanting in chosen:
        student = _add_group(session, task, Arm.STUDENT, rules, version.name, str(num_drawn.get(task.id, 0)))
        session.add_all(
            MeasuredTaskRow(
                measurement_id=row.id, task_id=task.id, student_group_id=student.id, num_sharing=len(wanting)
            )
            for row in wanting
        )
    for row in needy:
        row.policy_version = version.name
    session.flush()
    left = [row for row in needy if not any(row in wanting for _, wanting in chosen)]
    return [row for row in left if _end_without_tasks(row)]


def _count_tasks(session: Session, rows: Sequence[MeasurementRow]) -> dict[UUID, int]:
    """By measurement, how many of its tasks are drawn or being drawn; those that are judged are counted in the row."""
    query = (
        select(MeasuredTaskRow.measurement_id, func.count())
        .where(MeasuredTaskRow.measurement_id.in_([row.id for row in rows]))
        .group_by(MeasuredTaskRow.measurement_id)
    )
    return dict(session.execute(query).all())


def _count_drawn(session: Session, lineage_id: UUID) -> dict[UUID, int]:
    """By task, how often the student has drawn it to be measured."""
    query = (
        select(GroupRow.task_id, func.count())
        .where(GroupRow.lineage_id == lineage_id, GroupRow.purpose == Purpose.PROBE.value, GroupRow.num_shown == 0)
        .group_by(GroupRow.task_id)
    )
    return dict(session.execute(query).all())


def _choose_tasks(
    session: Session,
    lineage_id: UUID,
    domain: str,
    needy: Sequence[MeasurementRow],
    num_drawn: Mapping[UUID, int],
    seed: int,
) -> list[tuple[TaskRow, list[MeasurementRow]]]:
    """Tasks for a round, with the measurements that want each: the least measured ones first, of these those that most
    measurements want, spread over families."""
    used = {
        row.id: set(session.scalars(select(MeasuredTaskRow.task_id).where(MeasuredTaskRow.measurement_id == row.id)))
        for row in needy
    }
    pool = tasks.spread_over_families(session, lineage_id, Split.TRAIN, MOST_CANDIDATES, seed, [domain])
    fixed = _find_corrections(session, lineage_id, needy, pool)
    keys = {row.id: _find_needed_keys(session, row) for row in needy}
    wanted = [
        (
            task,
            [
                row
                for row in needy
                if task.id not in used[row.id]
                and keys[row.id] <= task.metadata_.keys()
                and _may_show(row, fixed.get(task.id, ()))
            ],
        )
        for task in pool
    ]
    wanted = [(task, wanting) for task, wanting in wanted if wanting]
    wanted.sort(key=lambda one: (num_drawn.get(one[0].id, 0), -len(one[1])))
    return wanted[:TASKS_PER_ROUND]


def _find_corrections(
    session: Session, lineage_id: UUID, needy: Sequence[MeasurementRow], pool: Sequence[TaskRow]
) -> Mapping[UUID, Sequence[Material]]:
    """What is fixed given these tasks, where a measurement of corrections is among these: few tasks have one."""
    if not any(row.source == ContextSource.CORRECTION.value for row in needy):
        return {}
    task_ids = [task.id for task in pool]
    return material.find_fixed(session, lineage_id, task_ids, include_probation=True, num_precedents=0)


def _find_needed_keys(session: Session, row: MeasurementRow) -> set[str]:
    """The metadata that its expert needs of a task to say anything; none where the words are others'."""
    descriptor = Descriptor.model_validate(session.get_one(ExpertRow, row.expert_id).descriptor)
    is_pooled = row.source == ContextSource.PRECEDENTS.value and AnswerKind.PRECEDENTS not in descriptor.kinds
    return set() if is_pooled or row.source == ContextSource.CORRECTION.value else set(descriptor.metadata_keys)


def _may_show(row: MeasurementRow, fixed: Iterable[Material]) -> bool:
    """Whether there is, or may come with the student's answers, something to show about a task."""
    if row.source != ContextSource.CORRECTION.value:
        return True
    return any(one.source.value == row.source and one.expert_id == row.expert_id for one in fixed)


def _end_without_tasks(row: MeasurementRow) -> bool:
    """Every task of the domain was tried: look a last time, or wait for more to show; whether that ended it."""
    if row.num_tasks >= LOOKS[0]:
        return _decide(row, is_last=False, out_of="train tasks")
    row.reason = f"only {row.num_tasks} of the {LOOKS[0]} tasks it needs have something to show"
    return False


def _add_group(
    session: Session,
    task: TaskRow,
    arm: Arm,
    rules: Rules,
    version: str,
    salt: str,
    measurement: MeasurementRow | None = None,
    shown: Shown | None = None,
) -> GroupRow:
    context = None if measurement is None or shown is None else arms.build_context(measurement, task, shown, arm)
    what = "" if measurement is None else f"{measurement.source}:{measurement.template}"
    digest = hashlib.sha256(f"{rules.seed}:{task.key}:{arm.value}:{what}:{salt}".encode()).digest()
    return groups.add(
        session,
        task,
        purpose=Purpose.PROBE,
        size=STUDENT_ANSWERS if context is None else SHOWN_ANSWERS,
        sampling=rules.sampling.model_copy(update={"seed": int.from_bytes(digest[:4]) >> 1}),
        policy_version=version,
        context=context,
        num_shown=0 if context is None else SHOWN_ANSWERS,
    )


# --- the arms of its tasks ---


def _open_tasks(session: Session, row: MeasurementRow) -> Sequence[MeasuredTaskRow]:
    """Its tasks for which no teacher draws yet."""
    return session.scalars(
        select(MeasuredTaskRow)
        .where(MeasuredTaskRow.measurement_id == row.id, MeasuredTaskRow.teacher_group_id.is_(None))
        .order_by(MeasuredTaskRow.task_id)
    ).all()


def _plan_arms(session: Session, lineage_id: UUID, measuring: Sequence[MeasurementRow], rules: Rules) -> None:
    """Once the student's answers to a round are settled, draw from teacher and control. Tasks without anything to show
    are left out."""
    waiting = {row: places for row in measuring if (places := _open_tasks(session, row))}
    if not waiting:
        return
    group_ids = {place.student_group_id for places in waiting.values() for place in places}
    if not all(tried.is_over for tried in arms.read_tried(session, list(group_ids)).values()):
        return
    task_ids = {place.task_id for places in waiting.values() for place in places}
    fixed = material.find_fixed(
        session,
        lineage_id,
        sorted(task_ids),
        include_probation=True,
        num_precedents=rules.num_precedents
        if any(row.source == ContextSource.PRECEDENTS.value for row in waiting)
        else 0,
    )
    student = _read_student(session, group_ids)
    about = {task.id: task for task in session.scalars(select(TaskRow).where(TaskRow.id.in_(task_ids)))}
    for row, places in waiting.items():
        if not _is_asking(session, row.expert_id, group_ids):
            _plan_arms_of(session, row, places, fixed, student, about, rules)


def _read_student(session: Session, group_ids: Iterable[UUID]) -> Mapping[UUID, list[RolloutRow]]:
    found: dict[UUID, list[RolloutRow]] = {group_id: [] for group_id in group_ids}
    for rollout in session.scalars(select(RolloutRow).where(RolloutRow.group_id.in_(list(found)))):
        found[rollout.group_id].append(rollout)
    return found


def _is_asking(session: Session, expert_id: UUID, group_ids: Iterable[UUID]) -> bool:
    """Whether the expert has still to answer about some of these groups."""
    unsettled = (ConsultationStatus.PENDING.value, ConsultationStatus.ASKED.value)
    return bool(
        session.scalar(
            select(
                exists().where(
                    RolloutRow.group_id.in_(list(group_ids)),
                    ConsultationRow.rollout_id == RolloutRow.id,
                    ConsultationRow.expert_id == expert_id,
                    ConsultationRow.status.in_(unsettled),
                )
            )
        )
    )


def _plan_arms_of(
    session: Session,
    row: MeasurementRow,
    places: Sequence[MeasuredTaskRow],
    fixed: Mapping[UUID, Sequence[Material]],
    student: Mapping[UUID, Sequence[RolloutRow]],
    about: Mapping[UUID, TaskRow],
    rules: Rules,
) -> None:
    source = ContextSource(row.source)
    shown = {
        place.task_id: one
        for place in places
        if (
            one := arms.find_shown(
                session,
                row,
                student[place.student_group_id],
                fixed.get(place.task_id, ()),
                num_precedents=rules.num_precedents,
            )
        )
    }
    controls = arms.pair_controls(source, about, shown)
    row.num_tokens += sum(_count_tokens(student[one.student_group_id]) // one.num_sharing for one in places)
    for place in places:
        if place.task_id not in controls:
            session.delete(place)
            continue
        task, drawn = about[place.task_id], session.get_one(GroupRow, place.student_group_id)
        version, salt = drawn.policy_version, str(drawn.sampling["seed"])
        assert version is not None, "the student's draw names its version"
        teacher = _add_group(session, task, Arm.TEACHER, rules, version, salt, row, shown[place.task_id])
        control = _add_group(session, task, Arm.CONTROL, rules, version, salt, row, controls[place.task_id])
        place.teacher_group_id, place.control_group_id = teacher.id, control.id
    row.reason = None if controls else _say_rare(source, len(places), len(shown))
    session.flush()


def _count_tokens(rollouts: Iterable[RolloutRow]) -> int:
    return sum(len(rollout.token_ids) for rollout in rollouts)


def _say_rare(source: ContextSource, num_tasks: int, num_shown: int) -> str:
    if num_shown:
        return f"{num_shown} of {num_tasks} tasks had something to show, and none another task as its control"
    return f"none of {num_tasks} tasks had anything to show ({source.value.replace('_', ' ')})"


# --- looks ---


def _look(session: Session, row: MeasurementRow, rules: Rules) -> bool:
    """Look at its tasks if there are enough; whether that ended it."""
    if row.source == ContextSource.DISTRIBUTION.value:
        return _look_at_mixing(session, row)
    query = select(MeasuredTaskRow).where(MeasuredTaskRow.measurement_id == row.id)
    places = session.scalars(query.order_by(MeasuredTaskRow.student_group_id)).all()  # round by round
    drawn = [place for place in places if place.teacher_group_id is not None]
    is_idle = len(places) == row.num_tasks
    if not is_idle and not (len(drawn) > row.num_tasks and _judge(session, row, drawn)):
        return False
    is_spent = row.num_tokens >= rules.max_tokens
    is_due = not is_idle and row.num_tasks >= LOOKS[row.num_looks]
    if not is_due and not is_spent:
        return False
    row.num_looks = sum(row.num_tasks >= num for num in LOOKS)
    return _decide(row, is_last=row.num_looks == len(LOOKS), out_of="tokens" if is_spent else None)


def _judge(session: Session, row: MeasurementRow, drawn: Sequence[MeasuredTaskRow]) -> bool:
    """Record what these tasks, round by round, say so far; False while answers to them are still to be drawn or
    judged."""
    tried = arms.read_tried(session, [group_id for place in drawn for group_id in _groups_of(place)])
    if not all(one.is_over for one in tried.values()):
        return False
    for place in drawn[row.num_tasks :]:
        _, teacher_id, control_id = _groups_of(place)
        row.num_tokens += tried[teacher_id].num_tokens + tried[control_id].num_tokens
    source = ContextSource(row.source)
    gaps, nets = [], []
    for place in drawn:
        student, teacher, control = (
            tried[group_id].rate(source, arm) for group_id, arm in zip(_groups_of(place), Arm, strict=True)
        )
        if student is None or teacher is None or control is None:
            session.delete(place)  # an arm could not be drawn or judged
            continue
        gaps.append(teacher - student)
        nets.append(teacher - control)
    if not gaps or len(gaps) == row.num_tasks:
        row.reason = f"none of {len(drawn) - len(gaps)} tasks could be drawn and judged three times"
    row.num_tasks = len(gaps)
    if len(gaps) >= 2:
        level = find_level(session, row)
        _record(row, find_bounds(gaps, level), find_bounds(nets, level))
    session.flush()
    return True


def _look_at_mixing(session: Session, row: MeasurementRow) -> bool:
    """Look at the scored train rollouts that the expert gave a distribution for."""
    gains = mixing.find_gains(session, row, LOOKS[row.num_looks])
    if len(gains) < LOOKS[row.num_looks]:
        row.reason = mixing.say_unmatched(session, row)
        return False
    row.num_tasks = len(gains)
    row.num_looks += 1
    _record(row, one_sided(gains, find_level(session, row)), None)
    return _decide(row, is_last=row.num_looks == len(LOOKS))


def find_level(session: Session, row: MeasurementRow) -> float:
    """In how many measurements what does not teach may pass, shared over all that could let it in: the templates of the
    source, and everything of an expert on probation, which one verdict promotes."""
    expert = session.get_one(ExpertRow, row.expert_id)
    if trust.is_on_probation(expert):
        return LEVEL / max(1, len(candidates.find_measurable(session, expert)))
    return LEVEL / len(templates_of(ContextSource(row.source)))


def _groups_of(place: MeasuredTaskRow) -> tuple[UUID, UUID, UUID]:
    """Those of student, teacher and control, in the order of the arms."""
    assert place.teacher_group_id is not None, "the task's teacher is drawn"
    assert place.control_group_id is not None, "and so is its control"
    return place.student_group_id, place.teacher_group_id, place.control_group_id


def _record(row: MeasurementRow, gap: Bounds, net: Bounds | None) -> None:
    """Keep what a look found."""
    row.gap, row.gap_low, row.gap_high = gap.mean, gap.low, gap.high
    if net is not None:
        row.net, row.net_low, row.net_high = net.mean, net.low, net.high


def _decide(row: MeasurementRow, *, is_last: bool, out_of: str | None = None) -> bool:
    """End it if what it has recorded decides; whether it did. out_of: what there is no more of to go on with; then it
    ends undecided, and what held before holds."""
    gap = _read_bounds(row.gap, row.gap_low, row.gap_high)
    net = _read_bounds(row.net, row.net_low, row.net_high)
    found = Decision.GO_ON if gap is None else decide(gap, net, is_last=is_last)
    if found is not Decision.GO_ON:
        _end(row, MeasurementStatus(found.value), None)
    elif out_of is not None:
        _end(row, MeasurementStatus.ABANDONED, f"{row.num_tasks} tasks do not decide, and there are no more {out_of}")
    return row.decided_at is not None


def _read_bounds(mean: float | None, low: float | None, high: float | None) -> Bounds | None:
    return None if mean is None or low is None or high is None else Bounds(mean, low, high)


def _end(row: MeasurementRow, status: MeasurementStatus, reason: str | None) -> None:
    row.status, row.reason, row.decided_at = status.value, reason, func.now()
