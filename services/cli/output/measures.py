"""Measurements as text: scores by temperature with their intervals, the headline, before and after."""

from collections.abc import Iterator, Sequence

from services.cli.output.outcome import DemoOutcome
from services.cli.output.report import number
from services.contracts.evaluations import EvaluationDetail
from services.contracts.status import Status
from services.contracts.updates import TermKind, UpdateDetail
from services.store.stats.estimates import (
    Change,
    Interval,
    by_temperature,
    domains,
    figures,
    headline,
    pick,
    say,
    score,
    temperatures,
)
from services.web.presenters import worth

RISE = "rise, with its 95 % interval over families"


def scores_line(label: str, found: EvaluationDetail) -> str:
    """pass@1 of each domain at its best temperature, in one line."""
    parts = [
        f"{best.domain} no best temperature ({best.reason})"
        if best.temperature is None
        else f"{best.domain} {_mean_at(score(pick(found.results, best.domain, best.temperature), 1), best.temperature)}"
        for best in found.best
        if best.k == 1
    ]
    return f"pass@1 {label}, at the best temperature: " + ", ".join(parts)


def scores(found: EvaluationDetail) -> Iterator[str]:
    """pass@1 and pass@k by domain and temperature with their intervals; the best temperatures are marked."""
    best = {(one.domain, one.k): one for one in found.best}
    yield f"{'kind':<12} {'figure':<8} {'T':>5}  passed, with its 95 % interval over families"
    for domain in domains(found.results):
        for k in figures(found.results):
            chosen = best.get((domain, k))
            for temperature in temperatures(found.results):
                measured = score(pick(found.results, domain, temperature), k)
                if measured is not None:
                    is_best = chosen is not None and chosen.temperature == temperature
                    mark = f"  best on {chosen.num_tasks} validation tasks" if chosen is not None and is_best else ""
                    said = f"{say(measured)} ({_count_families(measured.num)})"
                    yield f"{domain:<12} {f'pass@{k}':<8} {temperature:>5g}  {said}{mark}"
            if chosen is not None and chosen.reason is not None:
                yield f"{domain:<12} {f'pass@{k}':<8} no best temperature: {chosen.reason}"


def comparison(before: EvaluationDetail, after: EvaluationDetail) -> Iterator[str]:
    """The headline, each version at its own best temperature, then both at equal temperatures."""
    yield f"{after.policy_version} less {before.policy_version}, each at its best temperature on validation tasks:"
    yield f"{'kind':<12} {'figure':<8} {'before':>13} {'after':>13}  {RISE}"
    for change in headline(before, after):
        place = f"{change.domain:<12} {f'pass@{change.k}':<8}"
        if change.before_temperature is None or change.after_temperature is None:
            yield f"{place} no best temperature: {change.reason}"
            continue
        old = _mean_at(change.before, change.before_temperature)
        yield f"{place} {old:>13} {_mean_at(change.after, change.after_temperature):>13}  {_say_rise(change)}"
    yield from matched(before, after)


def matched(before: EvaluationDetail, after: EvaluationDetail) -> Iterator[str]:
    """Before and after at equal temperatures, by domain, pass@1 and pass@k."""
    yield "both at the same temperature T:"
    yield f"{'kind':<12} {'figure':<8} {'T':>5} {'before':>7} {'after':>7}  {RISE}"
    for change in by_temperature(before.results, after.results):
        yield (
            f"{change.domain:<12} {f'pass@{change.k}':<8} {change.after_temperature:>5g} "
            f"{_mean(change.before):>7} {_mean(change.after):>7}  {_say_rise(change)}"
        )


def summary(
    outcome: DemoOutcome,
    updates: Sequence[UpdateDetail],
    status: Status,
    kept: str,
) -> Iterator[str]:
    """The demo's closing report. kept: where the data is, and how to continue."""
    yield from comparison(outcome.before, outcome.after)
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
    for correction in trained.corrections:
        used_by = trained.used_by.get(correction.id)
        yield f"the correction {correction.id} was used by " + (f"update {used_by}" if used_by else "no update yet")
    yield "what each expert taught, and what it was measured to teach (± half of a 90 % interval):"
    yield from worth.lines(outcome.worth)
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


def _say_rise(change: Change) -> str:
    return "-" if change.rise is None else f"{say(change.rise, '+')} ({_count_families(change.num_families)})"


def _mean_at(interval: Interval | None, temperature: float) -> str:
    return f"{_mean(interval)} at {temperature:g}"


def _mean(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.mean:.3f}"
