"""LoadGen itself against a system that sleeps: verdicts and figures; then the whole service and the real ensemble."""

import json
import time

import pytest

pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed (extra: loadtest)")

from loadtest.__main__ import main
from loadtest.traffic.mlperf.referee import Rules, Taken, _result, judge
from tests.service.fake_triton import FakeTriton
from tests.service.running import gateway, settings_for, worker

REQUESTS = [{"prompt": str(number)} for number in range(8)]


class Sleeping:
    """Takes `seconds` for a video; breaks at the prompt `broken`."""

    suffix = "bin"

    def __init__(self, seconds=0.01, broken=None):
        self.seconds, self.broken = seconds, broken

    def check(self):
        pass

    def make(self, request):
        time.sleep(self.seconds)
        if request["prompt"] == self.broken:
            raise OSError("no")
        return request["prompt"].encode()


def rules(scenario, **more):
    values = {"min_seconds": 1.0, "min_queries": 100, "rate": 100.0, "latency_seconds": 0.5} | more
    return Rules(scenario, **values)


@pytest.mark.parametrize(
    ("scenario", "rate", "at_once"), [("SingleStream", 100, 1), ("Offline", 1000, 8), ("Server", 100, 8)]
)
def test_loadgen_finds_the_result_valid_and_has_our_figures(scenario, rate, at_once, tmp_path):
    result = judge(Sleeping(), REQUESTS, rules(scenario, rate=rate), at_once, tmp_path)
    assert result["valid"], (tmp_path / "mlperf_log_summary.txt").read_text()
    assert result["ours"]["samples"] >= 100
    assert result["difference"] <= 0.02
    assert (tmp_path / "mlperf_log_detail.txt").stat().st_size > 0


def test_a_rate_of_less_than_hundredths_is_compared_in_full(tmp_path):
    slow = [{"key": "result_validity", "value": "VALID"}, {"key": "result_completed_samples_per_sec", "value": 0.00412}]
    (tmp_path / "mlperf_log_detail.txt").write_text("".join(f":::MLLOG {json.dumps(line)}\n" for line in slow))
    taken = Taken(spans={number: (250.0 * number, 250.0 * (number + 1)) for number in range(35)})
    assert _result(tmp_path, rules("Server"), taken)["difference"] > 0.02
    taken = Taken(spans={number: (100.0, 100 + 34 / 0.00412) for number in range(35)})
    assert _result(tmp_path, rules("Server"), taken)["difference"] < 1e-6


def test_a_system_that_is_too_slow_for_the_server_scenario_is_invalid(tmp_path):
    slow = rules("Server", latency_seconds=0.005)
    assert judge(Sleeping(0.02), REQUESTS, slow, 8, tmp_path)["valid"] is False


def test_a_broken_video_makes_the_result_invalid(tmp_path):
    result = judge(Sleeping(broken="3"), REQUESTS, rules("SingleStream"), 1, tmp_path)
    assert result["valid"] is False
    assert result["first_errors"][0] == "OSError: no"


def test_accuracy_keeps_every_video_once(tmp_path):
    result = judge(Sleeping(), REQUESTS, rules("SingleStream", accuracy=True), 1, tmp_path)
    assert result["valid"]
    samples = json.loads((tmp_path / "videos" / "samples.json").read_text())
    assert [(tmp_path / "videos" / s["file"]).read_text() for s in samples] == [s["prompt"] for s in samples]
    assert (tmp_path / "mlperf_log_accuracy.json").stat().st_size > 2


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The URL of gateway, job engine and worker; only the model is a stand-in."""
    settings = settings_for(tmp_path_factory.mktemp("service"))
    with gateway(settings) as url, worker(settings, FakeTriton(settings.runs, step_seconds=0.0005)):
        yield url


@pytest.mark.parametrize(
    ("scenario", "more"), [("SingleStream", []), ("Offline", ["--rate", "10"]), ("Server", ["--rate", "8"])]
)
def test_the_whole_service_is_judged_valid_with_our_figures_and_leaves_the_logs(service, scenario, more, tmp_path):
    arguments = ["mlperf", "--scenario", scenario, "--url", service, "--out", str(tmp_path), *more]
    assert main([*arguments, "--min-seconds", "1", "--min-queries", "64", "--at-once", "8"]) == 0
    result = json.loads((tmp_path / "mlperf.json").read_text())
    assert (result["target"], result["valid"], result["ours"]["errors"]) == ("service", True, 0)
    assert result["difference"] <= 0.02
    assert "Result is : VALID" in (tmp_path / "mlperf_log_summary.txt").read_text()


@pytest.mark.slow
def test_the_real_ensemble_is_judged(triton, tmp_path):
    arguments = ["mlperf", "--target", "ensemble", "--url", triton.grpc_url, "--out", str(tmp_path)]
    assert main([*arguments, "--min-seconds", "1", "--min-queries", "64"]) == 0
    result = json.loads((tmp_path / "mlperf.json").read_text())
    assert (result["valid"], result["measure"], result["ours"]["errors"]) == (True, "p90_seconds", 0)
