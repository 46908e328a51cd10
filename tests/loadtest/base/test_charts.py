"""Axes and shapes of the charts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.base.charts import Chart, Layer, number, ticks


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_cover_the_range_and_are_few(low, span):
    found = ticks(low, low + span)
    slack = 1e-6 * (abs(low) + span)
    assert found[0] <= low + slack
    assert found[-1] >= low + span - slack
    assert 2 <= len(found) <= 15
    assert found == sorted(set(found))


def test_numbers_are_short():
    assert [number(v) for v in (0.25, 12000, 3_500_000, 2e9)] == ["0.25", "12k", "3.5M", "2G"]


def test_stacked_layers_stand_on_each_other():
    layers = [Layer("a", [(0, 1), (1, 2)], "bars"), Layer("b", [(0, 3), (1, 4)], "bars")]
    svg = Chart("s", "S", "x", "y", layers, stacked=True).svg()
    assert svg.count("<rect") == 4
    assert "b at 0: 3" in svg
    assert "b at 1: 4" in svg


@pytest.mark.parametrize("kind", ["line", "step", "dots", "cross", "bars"])
def test_one_point_is_drawn(kind):
    assert 'class="mark"' in Chart("s", "S", "x", "y", [Layer("a", [(3.0, 0.0)], kind)]).svg()


def test_a_limit_far_above_does_not_flatten_the_curve():
    def chart(limit):
        return Chart("s", "S", "x", "y", [Layer("a", [(0, 1), (1, 2)])], limit=(limit, "SLO")).svg()

    assert "SLO" in chart(3)
    assert "SLO" not in chart(300)
