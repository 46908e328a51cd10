"""The report of a run: its page, and its charts from the records and the metric series."""

import pytest

from loadtest.base.report import shown
from loadtest.traffic.run_report import against_load, charts, metric_charts, rates, run_report, stages, thin, write_run
from tests.loadtest import browser
from tests.loadtest.synthetic import synthetic

pytest.importorskip("playwright")
needs_chromium = pytest.mark.skipif(not browser.CHROMIUM.is_file(), reason="Chromium is not installed (apt: chromium)")


@pytest.fixture
def result(profile):
    mix = [{"name": "small"}, {"name": "large"}]
    made = synthetic(profile(mix=mix, slo={"total": {"p99": 2}}), 0.7, scatter=0.2, fail_every=9)
    made.series = {
        'wan_queue_jobs{instance="a",priority="normal"}': [[0, 0], [1, 3], [2, 1]],
        'wan_jobs_total{status="completed"}': [[0, 0], [1, 4], [2, 9]],
        "wan_job_seconds_sum": [[0, 0], [1, 4], [2, 9]],
        "wan_job_seconds_count": [[0, 0], [1, 2], [2, 4]],
    }
    return made


@needs_chromium
def test_chromium_draws_every_plot_and_fetches_nothing(result, tmp_path):
    write_run(result, tmp_path)
    plots, fetched, errors = browser.look(tmp_path / "report.html")
    assert {plot["name"] for plot in plots} == {chart.name for chart in charts(result)}
    assert len(plots) == 11
    for plot in plots:
        assert plot["marks"] > 0, plot
        assert plot["inside"], plot
        assert plot["width"] > 300, plot
    assert fetched == []
    assert errors == []


@needs_chromium
def test_a_run_without_a_single_video_still_has_a_report(profile, tmp_path):
    write_run(synthetic(profile(), 0.5, fail_every=1), tmp_path)
    plots, _, errors = browser.look(tmp_path / "report.html")
    assert {"latency-over-time", "throughput", "outcomes"} <= {plot["name"] for plot in plots}
    assert errors == []
    assert all(plot["marks"] > 0 for plot in plots)
    assert "No data for: Latency against load" in (tmp_path / "report.html").read_text()


def test_a_single_request_makes_a_report(profile):
    assert "<svg" in run_report(synthetic(profile(limits={"requests": 1, "seconds": 60}), 0.5))


def test_text_from_outside_is_escaped(result):
    result.summary["errors"] = {"<script>alert(1)</script>": 1}
    result.profile["prompts"] = ["<img src=x onerror=alert(1)>"]
    page = run_report(result)
    assert "<script" not in page
    assert "<img" not in page


def test_figures_are_readable():
    assert [shown(v) for v in (None, 0.123456, 12345.6, 3, "a")] == ["–", "0.123", "12346", "3", "a"]


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
