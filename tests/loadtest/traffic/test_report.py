"""Reports in a real browser: every plot is drawn, nothing is fetched."""

import pytest

from loadtest.base.report import shown
from loadtest.traffic.run_report import charts, run_report, write_run
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
