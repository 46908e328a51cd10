"""The command `python -m loadtest simulate`: traces, options, results, size."""

import json
import time

import numpy as np
import pytest

from loadtest.__main__ import main
from loadtest.base.inputs import ProfileError
from loadtest.fleet.fleet import Fleet, FleetOptions
from loadtest.fleet.mix import DEFAULT_MIX, parse_mix
from loadtest.fleet.rules import OURS, rules
from loadtest.fleet.scaling import ScalingPolicy
from loadtest.fleet.trace import make_trace, read_trace

MIX = parse_mix(DEFAULT_MIX)


@pytest.mark.parametrize("shape", ["poisson", "bursts", "day"])
def test_a_trace_has_its_rate_and_its_cost(shape):
    trace = make_trace(shape, 50_000, 600, MIX, 0.1, seed=2)
    assert len(trace) == 50_000
    assert (np.diff(trace.arrival) >= 0).all()
    assert trace.arrival[-1] / 3600 == pytest.approx(50_000 / 600, rel=0.02)
    mean = sum(kind.share * kind.gpu_seconds for kind in MIX) / sum(kind.share for kind in MIX)
    assert trace.predicted.mean() == pytest.approx(mean, rel=0.02)


def test_the_day_has_its_peak_in_the_evening():
    trace = make_trace("day", 100_000, 2000, MIX, 0.1, seed=2)
    hours = trace.arrival / 3600 % 24
    assert ((hours > 17) & (hours < 19)).sum() > 8 * ((hours > 5) & (hours < 7)).sum()


def test_bursts_hold_half_of_the_jobs_within_a_minute():
    trace = make_trace("bursts", 20_000, 2000, MIX, 0.1, seed=2)
    share = ((trace.arrival - 1800) % 3600 < 60).mean()
    assert 0.45 < share < 0.56


def test_a_recorded_trace_is_read(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text("[[5, 30], [0, 10]]")
    trace = read_trace(path, MIX, 0.0, 0)
    assert trace.arrival.tolist() == [0, 5]
    assert trace.work.tolist() == [10, 30]


@pytest.mark.parametrize("text", ["{}", "[]", "[[1, 2, 3]]", "[[0, -1]]", "nonsense"])
def test_a_bad_trace_is_refused_by_name(tmp_path, text):
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(ProfileError, match="trace.json"):
        read_trace(path, MIX, 0.1, 0)


@pytest.mark.parametrize("text", ["a:1", "a:x:3", "a:0:3", "a:1:-3"])
def test_a_bad_mix_is_refused(text):
    with pytest.raises(ProfileError, match="mix entry"):
        parse_mix(text)


def test_the_command_writes_results_and_pictures(tmp_path, capsys):
    assert main(["simulate", "--jobs", "400", "--max-replicas", "64", "--sweep", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    expected = {
        "predicted slots",
        "uncapped",
        "jobs",
        "queue length",
        "GPU utilisation",
        "spot, resume",
        "spot, no resume",
    }
    assert expected <= set(result["rows"])
    assert {"wait_p50", "wait_p95", "wait_p99", "gpu_hours_per_video", "wasted_gpu_seconds"} <= set(
        result["rows"]["jobs"]
    )
    for name in ("timeline", "gpu-hours", "frontier"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert capsys.readouterr().out.startswith("| scenario |")


def test_more_load_than_replicas_is_refused(tmp_path, capsys):
    assert main(["simulate", "--jobs", "1000", "--per-hour", "6000", "--out", str(tmp_path)]) == 2
    assert "maxReplicaCount" in capsys.readouterr().err


def test_a_hundred_thousand_jobs_on_a_thousand_gpus_take_seconds():
    """A small version of the million that `--jobs 1000000 --max-replicas 1000` runs."""
    policy = ScalingPolicy.from_manifest().resized(max_replicas=1000)
    trace = make_trace("poisson", 100_000, 27_000, MIX, 0.1, seed=1)
    kind = rules(policy)[OURS]
    began = time.process_time()
    fleet = Fleet(trace, policy, kind.make(kind.target), FleetOptions()).run()
    assert fleet.unfinished == 0
    assert max(sample[3] for sample in fleet.accounts.samples) > 500
    assert time.process_time() - began < 12
