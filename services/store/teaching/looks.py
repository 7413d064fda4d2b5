"""Looks: what the tasks of a measurement that are judged say so far, and whether that ends it."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.contracts.measurements import LOOKS, MeasurementStatus
from services.contracts.sources import Arm, ContextSource, templates_of
from services.store.loop import trust
from services.store.tables.loop import ExpertRow
from services.store.tables.teaching import MeasuredTaskRow, MeasurementRow
from services.store.teaching import arms, candidates, mixing
from services.store.teaching.sequential_test import LEVEL, Bounds, Decision, decide, find_bounds, one_sided


def look(session: Session, row: MeasurementRow, max_tokens: int) -> bool:
    """Look at its tasks if there are enough; whether that ended it. max_tokens: that it may draw."""
    if row.source == ContextSource.DISTRIBUTION.value:
        return _look_at_mixing(session, row)
    query = select(MeasuredTaskRow).where(MeasuredTaskRow.measurement_id == row.id)
    places = session.scalars(query.order_by(MeasuredTaskRow.student_group_id)).all()  # round by round
    drawn = [place for place in places if place.teacher_group_id is not None]
    is_idle = len(places) == row.num_tasks
    if not is_idle and not (len(drawn) > row.num_tasks and _judge(session, row, drawn)):
        return False
    is_spent = row.num_tokens >= max_tokens
    is_due = not is_idle and row.num_tasks >= LOOKS[row.num_looks]
    if not is_due and not is_spent:
        return False
    row.num_looks = sum(row.num_tasks >= num for num in LOOKS)
    return conclude(row, is_last=row.num_looks == len(LOOKS), out_of="tokens" if is_spent else None)


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
    return conclude(row, is_last=row.num_looks == len(LOOKS))


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


def conclude(row: MeasurementRow, *, is_last: bool, out_of: str | None = None) -> bool:
    """End it if what it has recorded decides; whether it did. out_of: what there is no more of to go on with; then it
    ends undecided, and what held before holds."""
    gap = _read_bounds(row.gap, row.gap_low, row.gap_high)
    net = _read_bounds(row.net, row.net_low, row.net_high)
    found = Decision.GO_ON if gap is None else decide(gap, net, is_last=is_last)
    if found is not Decision.GO_ON:
        end(row, MeasurementStatus(found.value), None)
    elif out_of is not None:
        end(row, MeasurementStatus.ABANDONED, f"{row.num_tasks} tasks do not decide, and there are no more {out_of}")
    return row.decided_at is not None


def _read_bounds(mean: float | None, low: float | None, high: float | None) -> Bounds | None:
    return None if mean is None or low is None or high is None else Bounds(mean, low, high)


def end(row: MeasurementRow, status: MeasurementStatus, reason: str | None) -> None:
    """End it now, with this status."""
    row.status, row.reason, row.decided_at = status.value, reason, func.now()
