"""Words and tables for people: an update in one line, the student-teacher gap, before and after."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Protocol

from services.contracts.consultations import ConsultationStatus
from services.contracts.corrections import CorrectionOutcome
from services.contracts.evaluations import EvaluationDetail, TaskResult
from services.contracts.lessons import LessonStatus
from services.contracts.rollouts import RolloutStatus
from services.contracts.status import Status, UpdateSummary
from services.contracts.updates import TermKind, UpdateDetail
from services.store.statistics import Interval, family_means, paired_difference, score

IDLE_ACTIVITIES = frozenset({"paused", "stopped"})
"""What the trainer says once it has published what it has and takes nothing on."""


class Trained(Protocol):
    """What the training phase did."""

    num_updates: int
    training_seconds: float
    correction: CorrectionOutcome | None
    correction_update: int | None


class Outcome(Protocol):
    """What the summary is written from."""

    @property
    def before(self) -> EvaluationDetail: ...
    @property
    def after(self) -> EvaluationDetail: ...
    @property
    def trained(self) -> Trained: ...
    @property
    def notes(self) -> list[str]: ...


def by_domain(results: Sequence[TaskResult]) -> dict[str, list[TaskResult]]:
    """Results by domain, in the domains' order."""
    domains = sorted({task.domain for task in results})
    return {domain: [task for task in results if task.domain == domain] for domain in domains}


def scores_line(label: str, results: Sequence[TaskResult]) -> str:
    """pass@1 of each domain in one line."""
    parts = [f"{domain} {_mean(score(tasks, 1))}" for domain, tasks in by_domain(results).items()]
    return f"pass@1 {label}: " + ", ".join(parts)


def mean_gap(gap: EvaluationDetail) -> float:
    """Teacher's pass@1 less the student's, over all probed domains."""
    student, teacher = (family_means(results, 1) for results in (gap.results, gap.teacher_results))
    shared = student.keys() & teacher.keys()
    return math.fsum(teacher[f] - student[f] for f in shared) / len(shared) if shared else 0.0


def gap_lines(gap: EvaluationDetail) -> Iterator[str]:
    """The gap of each domain: what a teacher that is shown the solution can do that the policy cannot."""
    teacher = by_domain(gap.teacher_results)
    for domain, tasks in by_domain(gap.results).items():
        student_score, teacher_score = score(tasks, 1), score(teacher.get(domain, []), 1)
        yield f"gap {domain}: policy {_mean(student_score)}, shown the solution {_mean(teacher_score)}"


def update_line(update: UpdateSummary, status: Status) -> str:
    """One applied update: its loss terms and the pass rates at that time."""
    terms = ", ".join(f"{name} {number(update.metrics[name])}" for name in LOSS_TERMS if name in update.metrics)
    rates = ", ".join(f"{rate.domain} {rate.pass_rate:.2f}" for rate in status.pass_rates)
    return f"update {update.number}: {terms}; train pass rate {rates or 'not known yet'}"


LOSS_TERMS = ("loss", "local", "future", "kl", "imitation", "grad_norm")


def activity(status: Status, rates: str = "") -> str:
    """What runs now, in a few words."""
    trainer = next((p.activity for p in status.processes if p.name == "trainer"), "starting")
    parts = [f"trainer {trainer}", f"serving {status.serving}", rates, f"backlog {status.backlog}"]
    return "; ".join(part for part in parts if part)


RATE_SECONDS = 120.0


class Rates:
    """How fast the loop goes, from its totals over the last two minutes."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, dict[str, int]]] = deque()

    def measure(self, status: Status, now: float) -> str:
        """Rollouts settled, answers got and lessons used a minute, in words; nothing until some seconds have passed.

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
        return ", ".join(f"{rate:.0f} {name}" for name, rate in per_minute.items()) + " a minute"


def status_lines(status: Status) -> Iterator[str]:
    """The loop at one glance."""
    yield f"lineage {status.lineage}, model {status.model}, serving {status.serving}"
    end = "" if status.loop.max_updates is None else f", until update {status.loop.max_updates}"
    yield f"sampling {_on(status.loop.sampling)}, training {_on(status.loop.training)}{end}"
    yield "tasks: " + (", ".join(f"{t.domain} {t.split} {t.num_tasks}" for t in status.tasks) or "none yet")
    for name in ("groups", "rollouts", "consultations", "lessons", "corrections"):
        counts: dict[str, int] = getattr(status, name)
        yield f"{name}: " + (", ".join(f"{count} {word}" for word, count in sorted(counts.items())) or "none")
    yield f"backlog: {status.backlog} rollouts drawn or planned and not yet trained on"
    for line in status.waits_for:
        yield f"waits: {line}"
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
    return f", the last {len(times)} at {(len(times) - 1) * 3600 / seconds:.0f} an hour" if seconds > 0 else ""


class Waits:
    """Which waits are worth a line: those that stood for a while without an update, each once while it stands."""

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


def scores(results: Sequence[TaskResult], num_samples: int) -> Iterator[str]:
    """pass@1 and pass@k by domain with their intervals."""
    for domain, tasks in by_domain(results).items():
        for k in sorted({1, num_samples}):
            measured = score(tasks, k)
            if measured is not None:
                families = len(family_means(tasks, k))
                interval = f"[{measured.low:.3f}, {measured.high:.3f}]"
                yield f"{domain:<12} pass@{k:<3} {measured.mean:.3f} {interval} ({families} families)"


def table(before: Sequence[TaskResult], after: Sequence[TaskResult], num_samples: int) -> Iterator[str]:
    """Before and after by domain, pass@1 and pass@k, with the paired difference and its interval over families."""
    yield f"{'kind':<12} {'figure':<8} {'before':>7} {'after':>7} {'rise':>7}  95 % interval over families"
    old, new = by_domain(before), by_domain(after)
    for domain in old:
        for k in (1, num_samples):
            rise = paired_difference(old[domain], new.get(domain, []), k)
            interval = "" if rise is None else f"[{rise.low:+.3f}, {rise.high:+.3f}]"
            families = len(family_means(old[domain], k))
            yield (
                f"{domain:<12} {f'pass@{k}':<8} {_mean(score(old[domain], k)):>7} "
                f"{_mean(score(new.get(domain, []), k)):>7} {'' if rise is None else f'{rise.mean:+.3f}':>7}  "
                f"{interval} ({families} families)"
            )


def summary(
    outcome: Outcome,
    updates: Sequence[UpdateDetail],
    status: Status,
    kept: str,
) -> Iterator[str]:
    """The demo's closing report. kept: where everything is, and how to go on from there."""
    num_samples = int(str(outcome.before.settings.get("num_samples", 1)))
    yield from table(outcome.before.results, outcome.after.results, num_samples)
    lessons = [lesson for update in updates for lesson in update.lessons]
    with_future = sum(any(lesson.future_nonzero for lesson in update.lessons) for update in updates)
    if updates:
        yield f"updates with a non-zero future term: {with_future} of {len(updates)}"
    for kind in TermKind:
        used = [update.number for update in updates if _has(update, kind)]
        if used:
            yield f"updates that used {kind.value}: {', '.join(map(str, used))}"
    yield f"lessons used: {len(lessons)}, in {outcome.trained.training_seconds:.0f} s of training"
    trained = outcome.trained
    if trained.correction is not None:
        used_by = "no update yet" if trained.correction_update is None else f"update {trained.correction_update}"
        yield f"the human correction {trained.correction.id} was used by {used_by}"
    for process in status.processes:
        seconds = ", ".join(
            f"{name.removesuffix('_seconds').replace('_', ' ')} {number(value)} s"
            for name, value in process.counters.items()
            if name.endswith("_seconds")
        )
        if seconds:
            yield f"time in {process.name}: {seconds}"
    yield from outcome.notes
    yield "A short run on few tasks: the intervals are wide and say no more than they say."
    yield kept


def _has(update: UpdateDetail, kind: TermKind) -> bool:
    return any(term.kind is kind for lesson in update.lessons for term in lesson.terms)


def _mean(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.mean:.3f}"


def number(value: object) -> str:
    """A figure with four significant digits."""
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
