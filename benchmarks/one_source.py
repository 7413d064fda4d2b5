"""The worth of one source at a time: `python -m benchmarks.loop --leave-one-in` writes its table and figure with this.

A row is what the same number of updates makes of the base when teachers are shown one source alone. Verifiers judge in
every row, so that pass rates are known and sources are measured; other experts keep answering, with weight 0. Seeds and
families are pooled (`benchmarks.pooling`). It says nothing about sources that only work beside another one; the row
`all` has them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pooling import Seed, choose_figures, pool_rise, say
from services.contracts.evaluations import EvaluationDetail
from services.contracts.experts import OwnKind
from services.contracts.sources import ContextSource
from services.store.stats.estimates import domains

TOOL_CALLS = "tool-call"  # the domain


@dataclass(frozen=True)
class Alone:
    """What one source is. teaches: the experts that may train, beside the verifiers, which judge in every row. shown:
    what teachers may be shown, by domain as in PRECEPTOR_TRAINER_SOURCES; None: as ever."""

    teaches: frozenset[OwnKind]
    shown: Mapping[str, Sequence[ContextSource]] | None


SOURCES: Mapping[str, Alone] = {
    "execution": Alone(frozenset(), {TOOL_CALLS: [], "*": [ContextSource.OWN_SUCCESS]}),
    "tool-outputs": Alone(frozenset(), {TOOL_CALLS: [ContextSource.OWN_SUCCESS], "*": []}),
    "people": Alone(frozenset({OwnKind.HUMAN}), {"*": [ContextSource.CORRECTION]}),
    "precedents": Alone(frozenset({OwnKind.PRECEDENTS}), {"*": [ContextSource.PRECEDENTS]}),
    "teacher": Alone(frozenset({OwnKind.TEACHER}), {"*": [ContextSource.SOLUTION, ContextSource.FEEDBACK]}),
    "reference": Alone(frozenset({OwnKind.REFERENCE}), {"*": [ContextSource.REFERENCE]}),
    "all": Alone(frozenset(OwnKind), None),
}
"""By name. What verifiers certify is shown by `execution` (command words too, which a checker of final answers judges)
and by `tool-outputs`; precedents are also made of what they certified for other tasks."""


@dataclass(frozen=True)
class Trained:
    """One source's evaluations, one for each seed that has ended, and the updates that each seed made of those wanted;
    None for a seed that has not ended."""

    source: str
    evaluations: tuple[EvaluationDetail, ...]
    num_updates: tuple[int | None, ...]
    num_wanted: int

    @property
    def updates(self) -> str:
        """What each seed made, in words."""
        return ", ".join(self._say(made) for made in self.num_updates)

    def _say(self, made: int | None) -> str:
        if made is None:
            return "not ended"
        return str(made) if made == self.num_wanted else f"{made} of {self.num_wanted}"


def _seeds(base: EvaluationDetail, trained: Trained) -> list[Seed]:
    return [Seed(base, after) for after in trained.evaluations]


def write_table(base: EvaluationDetail, found: Sequence[Trained], num_samples: int, about: str) -> str:
    """The document: one table for each kind of task. about: the run, in a sentence."""
    columns = choose_figures(num_samples)
    parts = ["# One source at a time", "", about, ""]
    for domain in domains(base.results):
        parts += [f"## {domain}", "", f"| source | updates | {' | '.join(one.title for one in columns)} |"]
        parts += ["|---" * (2 + len(columns)) + "|"]
        for one in found:
            cells = [say(pool_rise(_seeds(base, one), domain, figure)) for figure in columns]
            parts.append(f"| {one.source} | {one.updates} | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


def draw(base: EvaluationDetail, found: Sequence[Trained], path: Path) -> None:
    """The headline of every source with its interval, a panel for each kind of task; no point where no seed ended."""
    from matplotlib.figure import Figure as Drawing

    names = domains(base.results)
    drawing = Drawing(figsize=(3.6 * len(names), 3.2), layout="constrained")
    panels = drawing.subplots(1, len(names), squeeze=False, sharey=True)[0]
    headline = choose_figures(1)[0]
    for panel, domain in zip(panels, names, strict=True):
        for place, one in enumerate(found):
            rise = pool_rise(_seeds(base, one), domain, headline)
            if rise is None:
                continue
            panel.plot([rise.mean], [place], "o", color="#2a5a8a")
            if rise.is_known:
                panel.plot([rise.low, rise.high], [place, place], color="#2a5a8a", alpha=0.55, linewidth=3)
        panel.axvline(0, color="#888", linewidth=1)
        panel.set(title=domain, xlabel="rise in pass@1, best less best")
        panel.set_yticks(range(len(found)), [f"{one.source} ({one.updates})" for one in found])
        panel.grid(alpha=0.3, axis="x")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(len(found) - 0.5, -0.5)
    drawing.savefig(path, dpi=130)
