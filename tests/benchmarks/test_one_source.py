"""The table of one source at a time, by numbers worked out by hand."""

import math
from pathlib import Path

import pytest

from benchmarks.one_source import SOURCES, Trained, draw, write_table
from benchmarks.pooling import Figure, Seed, pool_level, pool_rise
from services.contracts.sources import SOURCE_ORDER, ContextSettings
from tests.store.stats.test_estimates import measured

BASE = measured("base", {0.0: [0, 0], 0.5: [1, 0]}, {0.0: [0], 0.5: [2]})  # best at .5: 1/4 and 0
SEEDS = (
    measured("v1", {0.0: [1, 0], 0.5: [3, 0]}, {0.0: [1], 0.5: [2]}),  # best greedy: 1 and 0
    measured("v1", {0.0: [0, 0], 0.5: [3, 1]}, {0.0: [0], 0.5: [3]}),  # best at .5: 3/4 and 1/4
)
TRAINED = Trained("people", SEEDS, (4, 3), 4)
PAIRS = [Seed(BASE, after) for after in SEEDS]


def test_a_familys_rise_is_averaged_over_seeds_before_the_interval_over_families() -> None:
    """First family: .75 and .5; second: 0 and .25. Means .625 and .125."""
    best = pool_rise(PAIRS, "math", Figure("best", 1, None))
    assert best is not None
    assert best.mean == pytest.approx(0.375)
    assert best.num == 2
    half = 12.706204736 * (0.5 / math.sqrt(2)) / math.sqrt(2)
    assert best.high == pytest.approx(min(1.0, 0.375 + half))
    greedy = pool_rise(PAIRS, "math", Figure("greedy", 1, 0.0))
    assert greedy is not None
    assert greedy.mean == pytest.approx(0.25)  # 1 of 2 seeds passes the first family
    level = pool_level(SEEDS, "math", Figure("best", 1, None))
    assert level is not None
    assert level.mean == pytest.approx(0.5)  # (1 + .75) / 2 and (0 + .25) / 2
    assert pool_rise(PAIRS, "other", Figure("best", 1, None)) is None


def test_the_table_has_a_row_for_each_source_and_says_what_did_not_end(tmp_path: Path) -> None:
    nothing, half, none = (
        Trained("teacher", (BASE,), (0,), 4),
        Trained("reference", SEEDS[:1], (4, None), 4),
        Trained("all", (), (None, None), 4),
    )
    table = write_table(BASE, [TRAINED, nothing, half, none], 4, "A run.").splitlines()
    assert "## math" in table

    def find(source: str) -> str:
        return next(line for line in table if line.startswith(f"| {source} |"))

    assert find("people").startswith("| people | 4, 3 of 4 | +0.375 [-1.000, +1.000] | +0.250 [-1.000, +1.000] |")
    assert find("teacher").startswith("| teacher | 0 of 4 | +0.000 [")
    assert find("reference").startswith("| reference | 4, not ended | +0.375 [-1.000, +1.000] |"), (
        "of one seed: .75 and 0"
    )
    assert find("all") == "| all | not ended, not ended | – | – | – | – |"
    draw(BASE, [TRAINED, nothing, half, none], tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("domain", ["code/python", "tool-call", "command"])
def test_in_every_domain_each_source_of_a_teachers_context_is_alone_in_one_row(domain: str) -> None:
    rows = [ContextSettings(sources=row.shown) for row in SOURCES.values() if row.shown is not None]
    assert sorted(source for row in rows for source in row.order_of(domain)) == sorted(SOURCE_ORDER)
