"""The loop as text: its status, one line per update, and reasons for waiting."""

from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from services.contracts.calibrations import Calibration
from services.contracts.consultations import ConsultationStatus
from services.contracts.lessons import LessonStatus
from services.contracts.rollouts import RolloutStatus
from services.contracts.status import Status, UpdateSummary

IDLE_ACTIVITIES = frozenset({"paused", "stopped"})
"""Activities of a trainer that has published its version and takes no new work."""


def update_line(update: UpdateSummary, status: Status) -> str:
    """One applied update: its loss terms and the pass rates at that time."""
    terms = ", ".join(f"{name} {number(update.metrics[name])}" for name in LOSS_TERMS if name in update.metrics)
    rates = ", ".join(f"{rate.domain} {rate.pass_rate:.2f}" for rate in status.pass_rates)
    return f"update {update.number}: {terms}; train pass rate {rates or 'not known yet'}"


LOSS_TERMS = ("loss", "local", "future", "kl", "imitation", "grad_norm")


def activity(status: Status, rates: str = "") -> str:
    """The current activity in a few words."""
    trainer = next((p.activity for p in status.processes if p.name == "trainer"), "starting")
    parts = [f"trainer {trainer}", f"serving {status.serving}", rates, f"backlog {status.backlog}"]
    return "; ".join(part for part in parts if part)


RATE_SECONDS = 120.0


class Rates:
    """The speed of the loop, from its totals over the last two minutes."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, dict[str, int]]] = deque()

    def measure(self, status: Status, now: float) -> str:
        """Rollouts settled, answers received and lessons used per minute, as text; empty in the first seconds.

        now: seconds of any steady clock.
        """
        totals = {
            "rollouts": sum(n for word, n in status.rollouts.items() if word != RolloutStatus.OPEN.value),
            "answers": status.consultations.get(ConsultationStatus.ANSWERED.value, 0),
            "lessons used": status.lessons.get(LessonStatus.USED.value, 0),
        }
        self._seen.append((now, totals))
        while now - self._seen[0][0] > RATE_SECONDS:
            self._seen.popleft()
        began, before = self._seen[0]
        if now - began < RATE_SECONDS / 10:
            return ""
        per_minute = {name: 60 * (total - before[name]) / (now - began) for name, total in totals.items()}
        return ", ".join(f"{rate:.0f} {name}" for name, rate in per_minute.items()) + " per minute"


def status_lines(status: Status) -> Iterator[str]:
    """The status as lines of text."""
    yield f"lineage {status.lineage}, model {status.model}, serving {status.serving}"
    end = "" if status.loop.max_updates is None else f", until update {status.loop.max_updates}"
    yield f"sampling {_on(status.loop.sampling)}, training {_on(status.loop.training)}{end}"
    yield "tasks: " + (", ".join(f"{t.domain} {t.split} {t.num_tasks}" for t in status.tasks) or "none yet")
    for name in ("groups", "rollouts", "consultations", "lessons", "corrections"):
        counts: dict[str, int] = getattr(status, name)
        yield f"{name}: " + (", ".join(f"{count} {word}" for word, count in sorted(counts.items())) or "none")
    yield f"backlog: {status.backlog} rollouts sampled or planned, not yet trained on"
    for line in status.waits_for:
        yield f"waits: {line}"
    for line in status.unjudged:
        yield f"note: {line}"
    yield f"updates: {status.num_updates}{_pace(status.last_updates)}"
    for update in sorted(status.last_updates, key=lambda u: u.number):
        yield "  " + update_line(update, status).split("; train")[0]
    if status.pass_rates:
        rates = ", ".join(f"{r.domain} {r.pass_rate:.2f} of {r.num_judged}" for r in status.pass_rates)
        yield f"pass rate of the newest train rollouts: {rates}"
    for process in status.processes:
        age = (datetime.now(UTC) - process.beat_at).total_seconds()
        yield f"{process.name}: {process.activity} ({age:.0f} s ago)"


def _pace(updates: Sequence[UpdateSummary]) -> str:
    """How often the newest updates came."""
    times = sorted(update.applied_at for update in updates)
    seconds = (times[-1] - times[0]).total_seconds() if times else 0.0
    return f", the last {len(times)} at {(len(times) - 1) * 3600 / seconds:.0f} per hour" if seconds > 0 else ""


class Waits:
    """The waits worth a line: those that lasted a while without an update, each once."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._said: set[str] = set()
        self._num_updates = -1

    def to_say(self, status: Status, now: float) -> list[str]:
        """The lines to say now, in the status's order. now: seconds of any steady clock."""
        if status.num_updates != self._num_updates:
            self._num_updates, self._since = status.num_updates, {}
        self._since = {line: self._since.get(line, now) for line in status.waits_for}
        self._said &= self._since.keys()
        due = [line for line, since in self._since.items() if now - since >= WAIT_SECONDS and line not in self._said]
        self._said.update(due)
        return due


WAIT_SECONDS = 20.0  # a full backlog between two updates is how the loop works, not a wait


def _on(switch: bool) -> str:
    return "on" if switch else "off"


def number(value: object) -> str:
    """A figure with four significant digits."""
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def calibration_line(found: Calibration) -> str:
    """How well one signal of an expert tells right answers from wrong ones in a domain."""
    auc = "no AUC, no task has a right and a wrong answer" if found.auc is None else f"AUC {found.auc:.2f}"
    low = "" if found.auc is None else f" (at least {'?' if found.auc_low is None else f'{found.auc_low:.2f}'})"
    outcome = "calibrated" if found.is_calibrated else "not known to tell right from wrong"
    return (
        f"{found.domain} {found.signal}: {auc}{low}, Brier {found.brier:.3f} (of the mean {found.brier_of_mean:.3f}), "
        f"{found.num_answers} answers on {found.num_tasks} tasks, {found.num_mixed_tasks} of them with right and wrong "
        f"ones: {outcome}"
    )
