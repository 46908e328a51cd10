"""Verdicts: met, missed, and what an error does to a latency threshold."""

import pytest

from loadtest.traffic.profile import SLO
from loadtest.traffic.summary import goodput, judge
from tests.loadtest.synthetic import synthetic

LOAD = {"load": {"kind": "constant", "per_minute": 60}, "limits": {"requests": 100, "seconds": 200}}


def verdicts(result, **slo) -> dict[str, bool]:
    elapsed = result.summary["elapsed_seconds"]
    return {check["name"]: check["ok"] for check in judge(SLO(**slo), result.records, elapsed)["checks"]}


def test_each_threshold_is_judged_for_itself(profile):
    result = synthetic(profile(**LOAD), 0.5)
    found = verdicts(
        result,
        wait={"p95": 0.1},
        total={"p99": 0.4, "mean": 0.6},
        error_rate=0,
        goodput={"within_seconds": 0.6, "share": 1},
        throughput_per_minute=70,
    )
    assert found == {
        "wait p95 (s)": True,
        "total p99 (s)": False,
        "total mean (s)": True,
        "error rate": True,
        "goodput (share within 0.6 s)": True,
        "throughput (videos/min)": False,
    }


def test_lost_requests_count_in_the_percentile_they_reach(profile):
    result = synthetic(profile(**LOAD), 0.5, fail_every=20)  # 5 of 100 have no video
    found = judge(SLO(total={"p90": 1, "p99": 1}, error_rate=0.04), result.records, 100)
    assert [(c["ok"], c["measured"]) for c in found["checks"]] == [
        (True, 0.5),
        (False, None),
        (False, pytest.approx(0.05)),
    ]
    assert not found["ok"]


def test_goodput_is_the_share_of_all_requests(profile):
    result = synthetic(profile(**LOAD), 0.5, fail_every=20)
    assert goodput(result.records, 0.6) == pytest.approx(0.95)
    assert goodput(result.records, 0.4) == 0


def test_a_run_without_requests_is_never_good():
    assert not judge(SLO(), [], 1.0)["ok"]
    assert not judge(SLO(error_rate=1), [], 1.0)["ok"]
