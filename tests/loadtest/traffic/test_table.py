"""Measurements as rows of a Markdown table."""

from loadtest.base.report import markdown
from loadtest.traffic.capacity import capacity_row
from loadtest.traffic.options import HEADER
from loadtest.traffic.queue_cost import OPERATIONS, QueueCost
from loadtest.traffic.run import run_row
from loadtest.traffic.scaling import Scaled, queue_row, worker_row
from tests.loadtest.synthetic import synthetic


def test_a_table_is_markdown():
    text = markdown([("a", "1", "2 s", "3 s", "4 s", "met")], HEADER)
    assert text.splitlines() == [
        "| load | videos/min | p50 | p95 | p99 | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
        "| a | 1 | 2 s | 3 s | 4 s | met |",
    ]


def test_a_run_shows_its_rate_its_percentiles_and_what_it_missed(profile):
    load, limits = {"kind": "constant", "per_minute": 60}, {"requests": 100, "seconds": 200}
    met = synthetic(profile(load=load, limits=limits, slo={"total": {"p99": 1}}), 0.5)
    assert run_row(met) == ("test (constant, 60 a minute)", "60.3", "0.5 s", "0.5 s", "0.5 s", "met")
    missed = synthetic(profile(load=load, limits=limits, slo={"total": {"p99": 0.4}, "error_rate": 0}), 0.5)
    assert run_row(missed)[-1] == "missed: total p99"


def test_percentiles_of_videos_that_never_came_are_not_numbers(profile):
    failing = synthetic(profile(limits={"requests": 100, "seconds": 200}, slo={"error_rate": 0}), 0.5, fail_every=10)
    assert run_row(failing)[3:] == ("no video", "no video", "missed: error rate")


def test_a_capacity_says_what_holds_and_what_does_not():
    totals = {"p50": 1.0, "p95": 2.0, "p99": 3.0}
    found = {"profile": {"name": "steady"}, "total_at_capacity": totals, "between": [40.0, 50.0]}
    assert capacity_row(found) == ("steady: capacity", "40", "1 s", "2 s", "3 s", "holds at 40, not at 50")
    assert capacity_row(found | {"between": [200.0, None]})[-1] == "holds at 200, the highest tried"
    assert capacity_row(found | {"between": [None, 10.0], "total_at_capacity": None})[1:] == (
        "below 10", "–", "–", "–", "not met",
    )  # fmt: skip


def test_workers_are_compared_with_the_first_number():
    one, two = (Scaled(count, 30, 100.0 * count**0.5, 1.0, 1.5, 2.0, 0.3, 0.1) for count in (1, 2))
    assert worker_row(one, one) == ("1 worker, always busy", "100.0", "1 s", "1.5 s", "2 s", "–")
    assert worker_row(two, one)[::5] == ("2 workers, always busy", "1.41 times 1")


def test_a_lease_is_judged_by_its_median():
    cost = QueueCost("postgresql", 100_000, {name: [0.001] * 98 + [0.009, 0.02] for name in OPERATIONS})
    assert queue_row(cost) == ("lease, 100,000 queued, PostgreSQL", "–", "1.0 ms", "1.0 ms", "9.0 ms", "met")
    slow = QueueCost("sqlite", 10, {name: [0.006] * 9 for name in OPERATIONS})
    assert queue_row(slow)[::5] == ("lease, 10 queued, SQLite", "over 5 ms")
    assert len(queue_row(slow)) == len(HEADER)
