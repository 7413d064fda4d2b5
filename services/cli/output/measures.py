"""Measurements as text: the student-teacher gap, scores with their intervals, before and after."""

import math
from collections.abc import Iterator, Sequence

from services.cli.output.outcome import DemoOutcome
from services.cli.output.report import number
from services.contracts.evaluations import EvaluationDetail, TaskResult
from services.contracts.status import Status
from services.contracts.updates import TermKind, UpdateDetail
from services.store.views.estimates import Interval, family_means, paired_difference, say, score


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
    """The gap of each domain: the score of a teacher shown the solution, beside that of the policy."""
    teacher = by_domain(gap.teacher_results)
    for domain, tasks in by_domain(gap.results).items():
        student_score, teacher_score = score(tasks, 1), score(teacher.get(domain, []), 1)
        yield f"gap {domain}: policy {_mean(student_score)}, shown the solution {_mean(teacher_score)}"


def scores(results: Sequence[TaskResult], num_samples: int) -> Iterator[str]:
    """pass@1 and pass@k by domain with their intervals."""
    for domain, tasks in by_domain(results).items():
        for k in sorted({1, num_samples}):
            measured = score(tasks, k)
            if measured is not None:
                yield f"{domain:<12} pass@{k:<3} {say(measured)} ({_count_families(measured.num)})"


def table(before: Sequence[TaskResult], after: Sequence[TaskResult], num_samples: int) -> Iterator[str]:
    """Before and after by domain, pass@1 and pass@k, with the paired difference and its interval over families."""
    yield f"{'kind':<12} {'figure':<8} {'before':>7} {'after':>7}  rise, with its 95 % interval over families"
    old, new = by_domain(before), by_domain(after)
    for domain in old:
        for k in sorted({1, num_samples}):
            rise = paired_difference(old[domain], new.get(domain, []), k)
            said = "-" if rise is None else f"{say(rise, '+')} ({_count_families(rise.num)})"
            yield (
                f"{domain:<12} {f'pass@{k}':<8} {_mean(score(old[domain], k)):>7} "
                f"{_mean(score(new.get(domain, []), k)):>7}  {said}"
            )


def summary(
    outcome: DemoOutcome,
    updates: Sequence[UpdateDetail],
    status: Status,
    kept: str,
) -> Iterator[str]:
    """The demo's closing report. kept: where the data is, and how to continue."""
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
    yield "This was a short run on few tasks, so the intervals are wide."
    yield kept


def _has(update: UpdateDetail, kind: TermKind) -> bool:
    return any(term.kind is kind for lesson in update.lessons for term in lesson.terms)


def _count_families(num: int) -> str:
    return "1 family" if num == 1 else f"{num} families"


def _mean(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.mean:.3f}"
