"""What each expert gave to a run, by numbers worked out by hand."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from services.contracts.sources import ContextSource
from services.contracts.updates import Speaker, TermKind, TermRecord, UpdateDetail, UpdateLesson, UpdateStatus
from services.web.presenters import worth

A, B, C = (UUID(int=number) for number in (1, 2, 3))
MATH, CODE = UUID(int=10), UUID(int=11)  # rollouts


def term(share: float, *speakers: UUID, source: ContextSource | None = None) -> TermRecord:
    return TermRecord(
        kind=TermKind.TOPK if source is None else TermKind.CONDITIONED,
        answers=[],
        weight=1.0,
        share=share,
        source=source,
        speakers=[
            Speaker(answer_id=UUID(int=100 + one.int), expert_id=one, expert=str(one.int), expert_version="1")
            for one in speakers
        ],
    )


def update(lessons: dict[UUID, list[TermRecord]]) -> UpdateDetail:
    now = datetime.now(UTC)
    return UpdateDetail(
        id=UUID(int=20),
        lineage_id=UUID(int=21),
        number=1,
        status=UpdateStatus.APPLIED,
        reason=None,
        objective="distil",
        settings={},
        metrics={},
        parent_sha256=None,
        fell_back_to=None,
        checkpoint_sha256=None,
        batch_sha256="f",
        started_at=now,
        applied_at=now,
        lessons=[
            UpdateLesson(
                lesson_id=rollout_id,
                rollout_id=rollout_id,
                group_id=UUID(int=22),
                baseline_group=None,
                terms=terms,
                future_nonzero=False,
                staleness=0,
            )
            for rollout_id, terms in lessons.items()
        ],
    )


def test_shares_are_of_the_whole_loss_and_of_each_domains() -> None:
    """math: A alone .2 and half of .4, so .4 of .6; code: B .3, and .1 that no expert is behind. The whole is 1."""
    own = ContextSource.OWN_SUCCESS
    made = update({MATH: [term(0.2, A, source=own), term(0.4, A, B, source=own)], CODE: [term(0.3, B), term(0.1)]})
    experts = [(A, "a", ["own success, teaches: +0.20 ± 0.10"]), (B, "b", []), (C, "c", [])]
    first, second, third = worth.weigh(experts, [made], {MATH: "math", CODE: "code"})
    assert (first.name, second.name, third.name) == ("b", "a", "c")
    assert [one.share for one in (first, second, third)] == pytest.approx([0.5, 0.4, 0.0])
    assert [(t.domain, t.how, t.num_lessons) for t in first.taught] == [("code", "topk", 1), ("math", "own success", 1)]
    assert [t.share for t in first.taught] == pytest.approx([0.3 / 0.4, 0.2 / 0.6])
    assert [t.share for t in second.taught] == pytest.approx([0.4 / 0.6])
    assert list(worth.lines([second, third])) == [
        "a: 40% of |loss|",
        "  taught math by own success: 67% of its |loss|, 1 lesson",
        "  own success, teaches: +0.20 ± 0.10",
        "c: 0% of |loss|, not measured",
    ]
