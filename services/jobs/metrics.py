"""The worker's figures: consultations by expert and outcome, draws, rollouts."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from services.contracts.consultations import InvalidAnswer
from services.contracts.experts import ConsultAbstain, ConsultLater, ConsultResult
from services.experts.protocol.client import ExpertUnavailable, Outcome

ANSWER_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
DRAW_SECONDS: Final = (0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)


class WorkerMeter:
    """Counters of a worker. Expert names are those of registered experts, so their number is bounded."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._consultations = Counter(
            "preceptor_consultations",
            "Consultations sent, by outcome: answered, abstained, waiting, invalid, busy, unavailable.",
            ("expert", "outcome"),
            registry=registry,
        )
        self._answer_seconds = Histogram(
            "preceptor_consultation_seconds",
            "From a consultation sent to its answer read.",
            ("expert",),
            buckets=ANSWER_SECONDS,
            registry=registry,
        )
        self._draws = Counter(
            "preceptor_draws", "Groups requested from the policy: drawn, late, failed.", ("outcome",), registry=registry
        )
        self._draw_seconds = Histogram(
            "preceptor_draw_seconds", "The policy's time for a group.", buckets=DRAW_SECONDS, registry=registry
        )
        self._rollouts = Counter("preceptor_rollouts_drawn", "Rollouts stored.", ("purpose",), registry=registry)
        self._tokens = Counter(
            "preceptor_rollout_tokens", "Tokens of rollouts stored.", ("purpose",), registry=registry
        )

    def asked(self, expert: str, reply: Outcome | ExpertUnavailable, seconds: float) -> None:
        """One consultation ended."""
        self._consultations.labels(expert, name_outcome(reply)).inc()
        self._answer_seconds.labels(expert).observe(seconds)

    def drew(self, outcome: str, seconds: float) -> None:
        """One group was requested from the policy: `drawn`, `late` (another worker was first) or `failed`."""
        self._draws.labels(outcome).inc()
        self._draw_seconds.observe(seconds)

    def stored(self, purpose: str, num_rollouts: int, num_tokens: int) -> None:
        """A group's rollouts are in the database."""
        self._rollouts.labels(purpose).inc(num_rollouts)
        self._tokens.labels(purpose).inc(num_tokens)


def name_outcome(reply: Outcome | ExpertUnavailable) -> str:
    """The outcome as a label."""
    match reply:
        case ConsultResult():
            return "answered"
        case ConsultAbstain():
            return "abstained"
        case ConsultLater():
            return "waiting"
        case InvalidAnswer():
            return "invalid"
        case ExpertUnavailable():
            return "unavailable" if reply.retry_after is None else "busy"
