"""Material: what there is to show to a teacher about a task, fixed given the prompt.

Own successes of earlier groups, corrections, precedents from other tasks, and references. Whether it teaches is not
decided here (`standing`), and neither is what a row of an update is shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.contracts.answers import Feedback
from services.contracts.sources import SOURCE_ORDER, ContextSource
from services.contracts.tasks import Message, Precedent
from services.contracts.updates import Speaker
from services.store.loop import answers, held_out
from services.store.loop.answers import Trace
from services.store.tables.loop import AnswerRow, TaskRow
from services.store.teaching import pool, right_answers
from services.store.teaching.right_answers import Giver, RightAnswer, Said

MIN_TRIED = 8  # alike tasks whose right answers are read, for each precedent that is shown: some may not count


@dataclass(frozen=True)
class Material:
    """Something that may be shown to a teacher about a task.

    expert_id: who is credited and measured. Of the policy's own successes, and of precedents made of them, that is a
    verifier that certified them; of all else the expert that answered. weight: the trust in it. answers, names,
    speakers: everything behind it.
    """

    source: ContextSource
    expert_id: UUID
    weight: float
    answers: tuple[UUID, ...]
    names: tuple[str, ...]
    speakers: tuple[Speaker, ...]
    solution: str | None = None
    precedents: tuple[Precedent, ...] = ()
    feedback: Feedback | None = None


@dataclass(frozen=True)
class _Draft:
    """Material before everyone behind it is known. label: names it, beside its experts."""

    source: ContextSource
    said: tuple[Said, ...]
    label: str | None = None
    solution: str | None = None
    precedents: tuple[Precedent, ...] = ()


def find_fixed(
    session: Session,
    lineage_id: UUID,
    task_ids: Sequence[UUID],
    *,
    before: Mapping[UUID, UUID] | None = None,
    include_probation: bool = False,
    num_precedents: int = 1,
    givers: Sequence[Giver] | None = None,
) -> dict[UUID, list[Material]]:
    """What may be shown about these tasks, in `SOURCE_ORDER`, at most one thing of each source and expert: what several
    verifiers certified is there once for each, so that it is shown as long as one of them teaches.

    before: by task, the group that own successes and corrections must be older than; a task that is not in it takes
    those of any group. include_probation: also what experts on probation said, which must not train. num_precedents:
    how many other tasks a teacher is shown together. A task that carries precedents of its own, known or still to come,
    has those alone. givers: what `right_answers.find_givers` finds, where the caller has it already.
    """
    limits = {task_id: (before or {}).get(task_id) for task_id in task_ids}
    right = right_answers.find(session, lineage_id, limits, include_probation=include_probation)
    drafts = {task_id: list(map(_show, found)) for task_id, found in right.items()}
    if num_precedents:
        tasks = session.scalars(select(TaskRow).where(TaskRow.id.in_(limits)).order_by(TaskRow.id)).all()
        given = _find_given(session, tasks, include_probation, num_precedents)
        known = right_answers.find_givers(session, lineage_id) if givers is None else givers
        of_precedents = [giver for giver in known if giver.source is ContextSource.PRECEDENTS]
        without = [task for task in tasks if not any(giver.serves(task) for giver in of_precedents)]
        chosen = _choose_precedents(session, without, num_precedents)
        for task in tasks:
            drafts[task.id] += [*given.get(task.id, []), *chosen.get(task.id, [])]
    said = [answer.id for own in drafts.values() for draft in own for answer, _ in draft.said]
    heard = answers.trace(session, list(dict.fromkeys(said)))
    return {
        task_id: [_make(draft, heard) for draft in sorted(own, key=lambda one: SOURCE_ORDER.index(one.source))]
        for task_id, own in drafts.items()
    }


def _show(right: RightAnswer) -> _Draft:
    return _Draft(right.source, right.said, _label(right), solution=right.text)


def _label(right: RightAnswer) -> str | None:
    return None if right.rollout_id is None else f"the policy's own rollout {right.rollout_id}"


def _find_given(
    session: Session, tasks: Sequence[TaskRow], include_probation: bool, num_precedents: int
) -> dict[UUID, list[_Draft]]:
    """What experts that are given a task's key `precedents` return in that part of their answers."""
    if not tasks:
        return {}
    lineage_id, key = tasks[0].lineage_id, ContextSource.PRECEDENTS.value
    readers = right_answers.find_readers(session, lineage_id, key, include_probation=include_probation)
    given = right_answers.find_given(session, [task.id for task in tasks], readers, AnswerRow.precedents)
    told = [(task, said) for task in tasks for said in given.get(task.id, [])]
    kept = held_out.read_precedents(session, lineage_id, [(said[0], task.messages) for task, said in told])
    found: dict[UUID, list[_Draft]] = {}
    for (task, said), precedents in zip(told, kept, strict=True):
        if precedents:
            draft = _Draft(ContextSource.PRECEDENTS, (said,), precedents=tuple(precedents[:num_precedents]))
            found.setdefault(task.id, []).append(draft)
    return found


def _choose_precedents(session: Session, tasks: Sequence[TaskRow], num_precedents: int) -> dict[UUID, list[_Draft]]:
    """Right answers to other tasks than each of these, the most alike ones of each expert that is credited with some.

    A question that a validation or held-out task asks is never among them, in other words of the system's either.
    """
    if not tasks:
        return {}
    lineage_id = tasks[0].lineage_id
    readers = right_answers.find_readers(session, lineage_id, "reference", include_probation=False)
    most = MIN_TRIED * num_precedents
    alike = {task_id: near[:most] for task_id, near in pool.find_alike(session, tasks, readers).items()}
    ids = sorted({other for near in alike.values() for other in near})
    right = right_answers.find(session, lineage_id, dict.fromkeys(ids))
    others = {row.id: row for row in session.scalars(select(TaskRow).where(TaskRow.id.in_(ids)))}
    told = [[(others[other], _find_first(right[other])) for other in alike[task.id] if right[other]] for task in tasks]
    precedents = [[_make_precedent(other, certified[0].text) for other, certified in own] for own in told]
    asked = [(own, task.messages) for task, own in zip(tasks, precedents, strict=True)]
    free = held_out.may_be_shown(session, lineage_id, asked)
    found: dict[UUID, list[_Draft]] = {}
    for task, own, kept in zip(tasks, told, free, strict=True):
        of_expert: dict[UUID, list[tuple[TaskRow, RightAnswer]]] = {}
        for other, certified in compress(own, kept):
            for answer in certified:
                of_expert.setdefault(answer.said[0][1].id, []).append((other, answer))
        found[task.id] = [_join_precedents(one[:num_precedents]) for one in of_expert.values()]
    return found


def _find_first(right: Sequence[RightAnswer]) -> list[RightAnswer]:
    """The first of these right answers, as often as it is there: once for each verifier that certified it."""
    if right[0].rollout_id is None:
        return [right[0]]
    return [one for one in right if one.rollout_id == right[0].rollout_id]


def _make_precedent(task: TaskRow, answer: str) -> Precedent:
    return Precedent(messages=[Message.model_validate(message) for message in task.messages], answer=answer)


def _join_precedents(chosen: Sequence[tuple[TaskRow, RightAnswer]]) -> _Draft:
    return _Draft(
        ContextSource.PRECEDENTS,
        tuple(said for _, answer in chosen for said in answer.said),
        ", ".join(f"the task {task.key}" for task, _ in chosen),
        precedents=tuple(_make_precedent(task, answer.text) for task, answer in chosen),
    )


def _make(draft: _Draft, heard: Mapping[UUID, Sequence[Trace]]) -> Material:
    """The material, with everyone whose words are behind it, each once."""
    _, credited = draft.said[0]
    names = [] if draft.label is None else [draft.label]
    speakers = {}
    for answer, expert in draft.said:
        names.append(f"{expert.name}@{answer.expert_version}")
        speakers[answer.id] = answers.name_speaker(answer, expert)
    for answer, _ in draft.said:
        for one in heard[answer.id]:
            if one.answer.id not in speakers:
                names.append(f"{one.expert.name}@{one.answer.expert_version}, shown to another expert")
                speakers[one.answer.id] = answers.name_speaker(one.answer, one.expert, one.shown_to)
    return Material(
        source=draft.source,
        expert_id=credited.id,
        weight=credited.weight,
        answers=tuple(speakers),
        names=tuple(dict.fromkeys(names)),
        speakers=tuple(speakers.values()),
        solution=draft.solution,
        precedents=draft.precedents,
    )
