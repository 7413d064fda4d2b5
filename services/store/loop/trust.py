"""Trust: which experts may train, and who may read their answers. All code decides both here.

An expert may train while it is active with a weight above 0. The circuit breaker does not change that: an active
expert in quarantine is away, not wrong. An answer counts when its expert could train as it answered and still may as
the answer is used. Pausing or retiring an expert, or sending it back to probation, takes its answers out of every
later use. Answers given on probation never count, whatever the expert's later status.

An answer may quote the task's metadata that its expert was given, and the metadata quoted by answers it was shown.
It is shown only to those who were granted all of these keys: an expert by its grants, a person by their role. The
same holds for a rollout drawn by a teacher that was shown such an answer.
"""

from collections.abc import Collection, Iterable
from typing import Any, overload

from sqlalchemy import ColumnElement, or_

from services.contracts.answers import AnswerStatus
from services.contracts.experts import Descriptor, ExpertStatus, OwnKind
from services.contracts.persons import Right
from services.store.tables.loop import AnswerRow, ExpertRow

ACTIVE, QUARANTINED = ExpertStatus.ACTIVE.value, ExpertStatus.QUARANTINED.value
PROBATION = ExpertStatus.PROBATION.value


@overload
def may_train(expert: ExpertRow) -> bool: ...


@overload
def may_train(expert: type[ExpertRow]) -> ColumnElement[bool]: ...


def may_train(expert: Any) -> Any:
    """Whether the expert may train now; for the table, the condition."""
    is_active = (expert.status == ACTIVE) | ((expert.status == QUARANTINED) & expert.was_active)
    return is_active & (expert.weight > 0)


@overload
def counts(answer: AnswerRow, expert: ExpertRow) -> bool: ...


@overload
def counts(answer: type[AnswerRow], expert: type[ExpertRow]) -> ColumnElement[bool]: ...


def counts(answer: Any, expert: Any) -> Any:
    """Whether this answer of this expert may train, be a verdict or be shown to a teacher now; for the tables, the
    condition."""
    return (answer.status == AnswerStatus.CURRENT.value) & answer.could_train & may_train(expert)


@overload
def is_on_probation(expert: ExpertRow) -> bool: ...


@overload
def is_on_probation(expert: type[ExpertRow]) -> ColumnElement[bool]: ...


def is_on_probation(expert: Any) -> Any:
    """Whether the expert may be measured before it trains; for the table, the condition."""
    return (expert.status == PROBATION) & (expert.weight > 0)


@overload
def is_tried(answer: AnswerRow, expert: ExpertRow) -> bool: ...


@overload
def is_tried(answer: type[AnswerRow], expert: type[ExpertRow]) -> ColumnElement[bool]: ...


def is_tried(answer: Any, expert: Any) -> Any:
    """Whether this answer of an expert on probation may be shown where that is measured, though it may not train; for
    the tables, the condition."""
    return (answer.status == AnswerStatus.CURRENT.value) & is_on_probation(expert)


def read_keys(expert: ExpertRow) -> set[str]:
    """The metadata keys the expert is given of a task that has them: those it declared and was granted."""
    return set(Descriptor.model_validate(expert.descriptor).metadata_keys).intersection(expert.granted)


def derive(expert: ExpertRow, metadata: Collection[str], shown: Iterable[AnswerRow]) -> set[str]:
    """The metadata keys that an answer of this expert may quote, about a task with this metadata, given the answers
    it was shown."""
    return read_keys(expert).intersection(metadata).union(*(answer.derived_from for answer in shown))


def may_see(viewer: ExpertRow | frozenset[Right], answer: AnswerRow) -> bool:
    """Whether the viewer may be shown the words of the answer: an expert that was granted everything that it may quote,
    or a person whose rights let them read the metadata of tasks."""
    if isinstance(viewer, ExpertRow):
        return set(answer.derived_from) <= set(viewer.granted)
    return not answer.derived_from or may_read_metadata(viewer)


def may_judge(expert: ExpertRow, quoted: Collection[str]) -> bool:
    """Whether the expert may be asked about an answer that may quote this metadata: one of our own, which keeps it in
    the house, or one that was granted all of it."""
    return expert.own is not None or set(quoted) <= set(expert.granted)


def may_hear(rights: frozenset[Right], expert: ExpertRow) -> bool:
    """Whether a person with these rights may read the expert's own error messages, which may quote metadata."""
    return may_read_metadata(rights) or not read_keys(expert)


def may_read_metadata(rights: frozenset[Right]) -> bool:
    """Whether a person with these rights may read hidden tests, references and the rest of a task's metadata."""
    return Right.OPERATE in rights


@overload
def is_people(expert: ExpertRow) -> bool: ...


@overload
def is_people(expert: type[ExpertRow]) -> ColumnElement[bool]: ...


def is_people(expert: Any) -> Any:
    """Whether it is our own expert behind the human queue; for the table, the condition."""
    if isinstance(expert, ExpertRow):
        return expert.own == OwnKind.HUMAN.value
    return expert.own.is_not_distinct_from(OwnKind.HUMAN.value)


@overload
def is_self(expert: ExpertRow) -> bool: ...


@overload
def is_self(expert: type[ExpertRow]) -> ColumnElement[bool]: ...


def is_self(expert: Any) -> Any:
    """Whether it is the policy's evaluation of itself; for the table, the condition."""
    if isinstance(expert, ExpertRow):
        return expert.own == OwnKind.SELF_EVALUATION.value
    return expert.own.is_not_distinct_from(OwnKind.SELF_EVALUATION.value)


def is_judge(expert: type[ExpertRow]) -> ColumnElement[bool]:
    """The condition that its scores are verdicts: verifiers', and people's decisions."""
    return or_(is_people(expert), expert.descriptor["verifier"].as_boolean())
