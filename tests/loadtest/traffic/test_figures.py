"""What the charts show of the records and series."""

import pytest

from loadtest.traffic.run_report import against_load, metric_charts, rates, stages, thin
from tests.loadtest.synthetic import synthetic


def test_counters_are_shown_per_second_and_histograms_as_means():
    series = {
        'a_total{x="1"}': [[0, 10], [2, 30]],
        "h_seconds_sum": [[0, 1], [2, 7]],
        "h_seconds_count": [[0, 1], [2, 3]],
        "gauge": [[0, 5], [2, 6]],
        "nv_inference_pending_request_count": [[0, 5], [2, 6]],
    }
    found = {chart.name: chart.layers[0].points for chart in metric_charts(series)}
    assert found == {
        "metric-a_total": [(2, 10.0)],
        "metric-h_seconds_sum": [(2, 3.0)],
        "metric-gauge": [(0, 5), (2, 6)],
        "metric-nv_inference_pending_request_count": [(0, 5), (2, 6)],
    }


def test_a_counter_that_starts_again_is_no_negative_rate():
    assert metric_charts({"a_total": [[0, 10], [1, 2]]})[0].layers[0].points == [(1, 0.0)]


def test_stages_stack_to_the_time_of_the_request(profile):
    result = synthetic(profile(limits={"requests": 20, "seconds": 100}), 0.5)
    chart = stages(result.records)
    top = [sum(layer.points[k][1] for layer in chart.layers) for k in range(20)]
    assert top == pytest.approx([record.total for record in result.records])


def test_a_long_run_is_thinned(profile):
    assert len(thin([(float(k), 0.0) for k in range(100_000)])) <= 3000
    result = synthetic(profile(limits={"requests": 2000, "seconds": 86_400}), 0.5)
    assert len(stages(result.records).layers[0].points) <= 160


def test_latency_rises_with_the_load_in_the_load_chart(profile):
    result = synthetic(profile(load={"kind": "poisson", "per_minute": 100}), 0.5)
    level = 0
    for record in result.records:  # paper has no runner to count them
        record.in_system = sum(other.intended < record.intended < other.finished for other in result.records)
        level = max(level, record.in_system)
    p50 = against_load(result.records).layers[1].points
    assert p50[-1][0] > p50[0][0]
    assert p50[-1][1] > p50[0][1]


def test_rates_count_every_event_once():
    assert sum(rate for _, rate in rates([0.1, 0.9, 5.0, 9.99], 2, 10)) * 2 / 60 == pytest.approx(4)
