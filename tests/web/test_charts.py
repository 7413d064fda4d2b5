"""Curves as drawn: round ticks, gaps where nothing was measured, and a sentence for those who cannot see them."""

from datetime import UTC, datetime

import pytest

from services.store.stats.estimates import DIFFERENCE_OF_SHARES, SHARE, Interval, t_interval
from services.store.views.curves import Curves
from services.web.presenters.charts import SIGHTS, choose_ticks, draw, draw_one, draw_versions
from services.web.rendering import environment

LOSS, KL, PASS_RATE = SIGHTS[0], SIGHTS[1], SIGHTS[2]


def curves(**series: tuple[float | None, ...]) -> Curves:
    num = len(next(iter(series.values())))
    return Curves(tuple(range(1, num + 1)), (datetime.now(UTC),) * num, series)


def figures(macro: str, *given: object) -> str:
    """The HTML that a macro of the templates makes of this."""
    return str(getattr(environment().get_template("figures.html").module, macro)(*given))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.13, 0.42, [0.1, 0.2, 0.3, 0.4, 0.5]),
        (-0.06, 0.55, [-0.2, 0.0, 0.2, 0.4, 0.6]),
        (3.0, 3.0, [2.4, 2.6, 2.8, 3.0, 3.2, 3.4, 3.6]),
    ],
)
def test_ticks_are_round_and_hold_every_value(low: float, high: float, expected: list[float]) -> None:
    assert choose_ticks(low, high) == pytest.approx(expected)


def test_updates_are_marked_by_whole_numbers() -> None:
    assert choose_ticks(1, 3, whole=True) == [1, 2, 3]
    assert choose_ticks(7, 7, whole=True) == [7, 8]


def test_a_line_is_drawn_in_its_frame_from_the_first_update_to_the_last() -> None:
    chart = draw_one(curves(pass_rate=(0.0, 1.0)), PASS_RATE)
    assert chart is not None
    assert chart.lines[0].points == ("0.00,100.00 100.00,0.00",)
    assert chart.at == (0.0, 100.0)
    assert chart.newest == "100\u202f%"


def test_a_line_breaks_where_nothing_was_measured() -> None:
    chart = draw_one(curves(loss=(0.5, None, 0.25, 0.25)), LOSS)
    assert chart is not None
    assert [len(part.split()) for part in chart.lines[0].points] == [2]
    assert len(chart.lines[0].dots) == 1


def test_a_single_value_is_a_dot_that_can_be_seen() -> None:
    chart = draw_one(curves(pass_rate=(0.5,)), PASS_RATE)
    assert chart is not None
    assert (chart.lines[0].points, len(chart.lines[0].dots)) == ((), 1)
    assert "<circle" in figures("chart", chart, "id")


def test_an_interval_of_a_difference_is_no_wider_than_all_of_it_and_says_when_it_rests_on_little() -> None:
    shown = figures("rise", t_interval([0.92, 0.0], DIFFERENCE_OF_SHARES))
    assert "+46 points" in shown
    assert "[-100, +100]" in shown
    assert "not reliable" in shown
    assert "not reliable" not in figures("rise", Interval(0.46, -0.32, 1.0, 5))
    assert "not reliable" in figures("interval", Interval(0.5, 0.0, 1.0, 2))
    assert "no interval" in figures("interval", t_interval([0.5], SHARE))


def test_only_a_verifiers_score_is_shown_as_passed_or_failed() -> None:
    assert "failed 0.286" in figures("given_score", 0.286, True)
    opinion = figures("given_score", 0.286, False)
    assert "score 0.286" in opinion
    assert "failed" not in opinion


def test_a_chart_says_what_its_axes_and_lines_are() -> None:
    chart = draw_one(curves(kl=(0.5, 0.25), gap=(-0.1, -0.2)), KL)
    assert chart is not None
    shown = figures("chart", chart, "id")
    assert "by update" in shown
    assert "how much more likely the policy" in shown


def test_terms_that_are_zero_all_along_are_left_out() -> None:
    chart = draw_one(curves(loss=(0.5, 0.4), local=(0.4, 0.3), partial=(0.0, 0.0)), LOSS)
    assert chart is not None
    assert [line.label for line in chart.lines] == ["loss", "local"]


def test_charts_without_values_are_not_drawn() -> None:
    assert draw(Curves((), (), {})) == []
    assert [chart.sight.name for chart in draw(curves(entropy=(0.4, 0.3)))] == ["entropy"]


def test_a_chart_says_in_words_how_it_goes() -> None:
    chart = draw_one(curves(loss=(0.5, 0.25), local=(None, 0.2)), LOSS)
    assert chart is not None
    assert chart.described == (
        "Loss terms, nats per token, updates 1 to 2: loss from 0.5 to 0.25; local from 0.2 to 0.2"
    )


def test_versions_stand_side_by_side_with_their_intervals() -> None:
    chart = draw_versions([("base", Interval(0.5, 0.25, 0.75, 8)), ("v1", Interval(1.0, 0.5, 1.0, 8))])
    assert chart is not None
    first, second = chart.whiskers
    assert (first.at, second.at) == (25.0, 75.0)
    assert (first.high, first.mean, first.low) == (25.0, 50.0, 75.0)  # upwards is less in SVG
    assert second.mean == 0.0
    assert chart.described == "Pass rate by version: base: 50 % [25, 75]; v1: 100 % [50, 100]"


def test_of_many_versions_a_few_are_named_the_newest_among_them() -> None:
    chart = draw_versions([(f"v{number}", Interval(0.5, 0.25, 0.75, 8)) for number in range(24)])
    assert chart is not None
    assert [tick.label for tick in chart.x_ticks] == ["v23", "v17", "v11", "v5"]
    assert draw_versions([]) is None
