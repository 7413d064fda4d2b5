"""Experts that nobody trusts, as others write them: one is too busy for anybody, one has an answer to everything.

Both are registered and stay on probation: the loop must neither wait for them nor learn from them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from services.contracts.answers import AnswerKind, Feedback
from services.contracts.experts import ConsultRequest, ConsultResult, Descriptor
from services.experts.protocol.app import create_expert_app
from services.runtime.errors import ServiceUnavailable
from tests.serving import serve

MANY_QUESTIONS = 256
"""Far more than the checks at registration ask before the loop asks anything."""


class TooBusy(ServiceUnavailable):
    """The expert has no time for an hour."""

    status_code = 429
    title = "Too busy"
    retry_after_seconds = 3600


class BusyExpert:
    """Passes its checks, and then answers every question with 429 and an hour's wait."""

    descriptor = Descriptor(
        name="busy",
        version="1",
        kinds=[AnswerKind.SCORE],
        domains=["math"],
        metadata_keys=[],
        deterministic=True,
        max_concurrency=MANY_QUESTIONS,
        usual_latency_seconds=0.01,
    )

    def __init__(self) -> None:
        self.is_open = True
        self.num_refused = 0

    def consult(self, request: ConsultRequest) -> ConsultResult:
        """A score while it is being checked, and nothing after."""
        if self.is_open:
            return ConsultResult(score=1.0)
        self.num_refused += 1
        raise TooBusy("ask again in an hour")


class ConfidentExpert:
    """Has a solution, a verdict and advice for every rollout; all of them wrong."""

    descriptor = Descriptor(
        name="confident",
        version="1",
        kinds=[AnswerKind.SCORE, AnswerKind.SOLUTION, AnswerKind.FEEDBACK],
        domains=["math"],
        metadata_keys=[],
        deterministic=True,
        max_concurrency=MANY_QUESTIONS,
        usual_latency_seconds=0.01,
    )

    def __init__(self) -> None:
        self.num_answered = 0

    def consult(self, request: ConsultRequest) -> ConsultResult:
        """The same wrong words for every question."""
        self.num_answered += 1
        return ConsultResult(score=1.0, solution="the answer is a lie", feedback=Feedback(text="you were right"))


@contextmanager
def serve_strangers() -> Iterator[tuple[str, BusyExpert, ConfidentExpert]]:
    """The URL below which both are served, each at its name."""
    busy, confident = BusyExpert(), ConfidentExpert()
    with serve(create_expert_app([busy, confident])) as url:
        yield url, busy, confident
