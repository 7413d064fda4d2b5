"""Evaluations: a policy version's answers to a split's tasks, as the verifiers judged them.

An evaluation is its groups, one for each task and temperature; nothing is computed twice.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Float, Integer, case, cast, func, select
from sqlalchemy.orm import Session

from services.contracts.answers import PASS_SCORE
from services.contracts.evaluations import Evaluation, EvaluationCreate, EvaluationStatus, TaskResult
from services.contracts.rollouts import GroupStatus, Purpose, RolloutStatus, Sampling
from services.contracts.tasks import Split
from services.runtime.errors import InvalidInput, NotFound
from services.store.ledger import policies
from services.store.loop import groups, tasks
from services.store.tables.ledger import PolicyVersionRow
from services.store.tables.loop import EvaluationRow, GroupRow, RolloutRow, TaskRow


class EvaluationNotFound(NotFound):
    """No evaluation with this id."""


class NothingToEvaluate(InvalidInput):
    """The split has no tasks, or none of a domain."""

    hint = "Import tasks with `preceptor tasks import FILE` first."


def create(
    session: Session, lineage_id: UUID, wanted: EvaluationCreate, sampling: Sampling
) -> tuple[EvaluationRow, list[UUID]]:
    """Plan an evaluation; returns it and its groups' ids, to be sent after the commit.

    sampling: how answers are drawn, apart from the temperature.

    Errors: NothingToEvaluate (422), PolicyVersionNotFound (404), WeightsDeleted (409).
    """
    version = _version(session, lineage_id, wanted.policy_version)
    chosen = tasks.spread_over_families(
        session, lineage_id, wanted.split, wanted.num_tasks, wanted.seed, wanted.domains
    )
    if empty := sorted({*(wanted.domains or ())} - {task.domain for task in chosen}):
        raise _no_tasks_of(session, lineage_id, wanted.split, empty)
    if not chosen:
        raise NothingToEvaluate(f"split {wanted.split.value!r} has no tasks")
    drawn = {"sampling": sampling.model_dump(mode="json", exclude={"temperature", "seed"})}
    row = EvaluationRow(
        lineage_id=lineage_id,
        policy_version=version.name,
        split=wanted.split.value,
        settings=wanted.model_dump(mode="json") | drawn,
    )
    session.add(row)
    session.flush()
    planned = [
        groups.add(
            session,
            task,
            purpose=Purpose.EVALUATION,
            size=wanted.num_samples if temperature > 0 else 1,
            sampling=sampling.model_copy(update={"seed": _seed(wanted.seed, index), "temperature": temperature}),
            evaluation_id=row.id,
            policy_version=version.name,
        )
        for index, task in enumerate([*chosen, *_validation_tasks(session, lineage_id, wanted)])
        for temperature in wanted.temperatures
    ]
    return row, [group.id for group in planned]


def _no_tasks_of(session: Session, lineage_id: UUID, split: Split, empty: Sequence[str]) -> NothingToEvaluate:
    """The error that these domains have no tasks in the split, with the domains that have some."""
    there = tasks.find_domains(session, lineage_id, [split])
    hint = f"It has tasks of {', '.join(there)}." if there else None
    return NothingToEvaluate(f"split {split.value!r} has no tasks of {', '.join(empty)}", hint=hint)


def _validation_tasks(session: Session, lineage_id: UUID, wanted: EvaluationCreate) -> Sequence[TaskRow]:
    """The tasks to choose temperatures on, beside those measured; none where these are validation tasks themselves."""
    if wanted.split is Split.VALIDATION or wanted.num_validation_tasks == 0 or len(wanted.temperatures) == 1:
        return []
    num = wanted.num_validation_tasks
    return tasks.spread_over_families(session, lineage_id, Split.VALIDATION, num, wanted.seed, wanted.domains)


def _version(session: Session, lineage_id: UUID, name: str | None) -> PolicyVersionRow:
    version = policies.serving(session, lineage_id) if name is None else policies.by_name(session, lineage_id, name)
    if version is None:
        raise policies.PolicyVersionNotFound("no policy version serves", hint="Name one with policy_version.")
    policies.require_weights(version)
    return version


def _seed(seed: int, index: int) -> int:
    return (seed * 1_000_003 + index) % 2**31


def get(session: Session, evaluation_id: UUID) -> EvaluationRow:
    """The evaluation. Errors: EvaluationNotFound."""
    row = session.get(EvaluationRow, evaluation_id)
    if row is None:
        raise EvaluationNotFound(f"no evaluation {evaluation_id}")
    return row


def view(session: Session, row: EvaluationRow) -> Evaluation:
    """The evaluation with how far it has come."""
    wanted, dead = session.execute(
        select(
            func.coalesce(func.sum(GroupRow.size), 0),
            func.coalesce(func.sum(case((GroupRow.status == GroupStatus.DEAD.value, GroupRow.size), else_=0)), 0),
        ).where(GroupRow.evaluation_id == row.id)
    ).one()
    settled = session.scalar(
        select(func.count())
        .select_from(RolloutRow)
        .join(GroupRow, GroupRow.id == RolloutRow.group_id)
        .where(GroupRow.evaluation_id == row.id, RolloutRow.status != RolloutStatus.OPEN.value)
    )
    return Evaluation.model_validate(
        {
            "id": row.id,
            "lineage_id": row.lineage_id,
            "policy_version": row.policy_version,
            "split": row.split,
            "status": row.status,
            "settings": row.settings,
            "created_at": row.created_at,
            "finished_at": row.finished_at,
            "num_rollouts": int(wanted),
            "num_settled": int(settled or 0) + int(dead),
        }
    )


def results(session: Session, evaluation_id: UUID, split: Split) -> list[TaskResult]:
    """Passes by task and temperature, of the answers to this split's tasks that have a verdict."""
    judged = RolloutRow.score.is_not(None)
    temperature = func.coalesce(cast(GroupRow.sampling["temperature"].astext, Float), 1.0).label("temperature")
    rows = session.execute(
        select(
            TaskRow.id,
            TaskRow.key,
            TaskRow.domain,
            TaskRow.family,
            temperature,
            func.sum(cast(judged, Integer)),
            func.coalesce(func.sum(cast(RolloutRow.score > PASS_SCORE, Integer)), 0),
            func.sum(cast(~judged, Integer)),
            func.avg(cast(func.cardinality(RolloutRow.token_ids), Float)),
        )
        .join(GroupRow, GroupRow.task_id == TaskRow.id)
        .join(RolloutRow, RolloutRow.group_id == GroupRow.id)
        .where(GroupRow.evaluation_id == evaluation_id, GroupRow.split == split.value)
        .group_by(TaskRow.id, temperature)
        .order_by(TaskRow.domain, TaskRow.family, TaskRow.key, temperature)
    )
    names = ("task_id", "key", "domain", "family", "temperature", "num_judged", "num_passed", "num_unjudged")
    return [TaskResult.model_validate(dict(zip((*names, "mean_tokens"), row, strict=True))) for row in rows]


def finish_complete(session: Session) -> Sequence[UUID]:
    """Mark the running evaluations done whose every group is drawn and judged; returns their ids."""
    running = session.scalars(
        select(EvaluationRow)
        .where(EvaluationRow.status == EvaluationStatus.RUNNING.value)
        .with_for_update(skip_locked=True)
    ).all()
    done = []
    for row in running:
        progress = view(session, row)
        if progress.num_settled >= progress.num_rollouts:
            row.status = EvaluationStatus.DONE.value
            row.finished_at = func.now()
            done.append(row.id)
    return done
