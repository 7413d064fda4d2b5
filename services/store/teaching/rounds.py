"""Rounds: which tasks measurements draw next, from the student and then from teacher and control."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerKind
from services.contracts.consultations import ConsultationStatus
from services.contracts.experts import Descriptor
from services.contracts.measurements import LOOKS
from services.contracts.rollouts import Purpose, Sampling
from services.contracts.sources import Arm, ContextSource
from services.contracts.tasks import Split
from services.store.core import row_counts
from services.store.ledger import policies
from services.store.loop import groups, tasks
from services.store.tables.loop import ConsultationRow, ExpertRow, GroupRow, RolloutRow, TaskRow
from services.store.tables.teaching import MeasuredTaskRow, MeasurementRow
from services.store.teaching import arms, candidates, looks, material
from services.store.teaching.arms import Shown
from services.store.teaching.candidates import Ages
from services.store.teaching.material import Material

TASKS_PER_ROUND: Final = 8
STUDENT_ANSWERS: Final = 8
SHOWN_ANSWERS: Final = 4
"""Of teacher and control each: tasks, not answers, are what a measurement needs many of."""
MOST_CANDIDATES: Final = 256
"""Tasks of a domain among which a round is chosen."""


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


def _has_room(session: Session, lineage_id: UUID, rules: Rules) -> bool:
    """Whether measuring has had less than its share of all rollouts."""
    drawn = row_counts.by_kind(row_counts.read(session, lineage_id, ("rollout",))["rollout"])
    measured, trained = (sum(drawn.get(purpose.value, {}).values()) for purpose in (Purpose.PROBE, Purpose.TRAIN))
    return measured < rules.share * (measured + trained)


def draws(row: MeasurementRow) -> bool:
    """Whether it draws anything; what a distribution teaches is read off train rollouts."""
    return row.source != ContextSource.DISTRIBUTION.value


def begin(
    session: Session,
    lineage_id: UUID,
    domain: str,
    measuring: Sequence[MeasurementRow],
    rules: Rules,
    is_sampling: bool,
) -> list[MeasurementRow]:
    """Draw the next tasks from the student, once no draw of the domain's measurements is under way; returns the
    measurements that ended because no task is left for them."""
    drawing = [row for row in measuring if draws(row)]
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
        return looks.conclude(row, is_last=False, out_of="train tasks")
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


def _open_tasks(session: Session, row: MeasurementRow) -> Sequence[MeasuredTaskRow]:
    """Its tasks for which no teacher draws yet."""
    return session.scalars(
        select(MeasuredTaskRow)
        .where(MeasuredTaskRow.measurement_id == row.id, MeasuredTaskRow.teacher_group_id.is_(None))
        .order_by(MeasuredTaskRow.task_id)
    ).all()


def plan_arms(session: Session, lineage_id: UUID, measuring: Sequence[MeasurementRow], rules: Rules) -> None:
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
