"""Metric series of a run's window, scraped and from a real Prometheus."""

import asyncio
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest

from loadtest.base.inputs import TargetUnavailable
from loadtest.traffic.metrics import collect, samples
from loadtest.traffic.profile import Metrics
from loadtest.traffic.session import run_profile

LIMITS = {"requests": 8, "seconds": 10}
LOAD = {"kind": "constant", "per_minute": 240}


def test_reads_only_wanted_samples_of_an_exposition():
    text = """# TYPE wan_job_seconds histogram
wan_job_seconds_bucket{le="1.0"} 1
wan_job_seconds_sum 2.5
wan_job_seconds_count 1
# TYPE wan_workers gauge
wan_workers{state="busy"} 1
wan_workers{state="idle"} NaN
other_thing 3
"""
    assert dict(samples(text, ["wan_"], "h:1")) == {
        'wan_job_seconds_sum{instance="h:1"}': 2.5,
        'wan_job_seconds_count{instance="h:1"}': 1,
        'wan_workers{instance="h:1",state="busy"}': 1,
    }


def test_scrapes_the_target_during_the_run(standin, profile):
    url = standin("--service", 0.1)
    metrics = {"scrape": [f"{url}/metrics", "http://127.0.0.1:9/metrics"], "every_seconds": 0.2}
    result = run_profile(profile(target={"url": url}, load=LOAD, limits=LIMITS, metrics=metrics))
    completed = next(points for key, points in result.series.items() if 'status="completed"' in key)
    assert completed[0][1] == 0
    assert completed[-1][1] == 8
    assert len(completed) >= 5
    assert 0 <= completed[0][0] < completed[-1][0] < 10
    queued = next(points for key, points in result.series.items() if key.startswith("wan_queue_jobs"))
    assert [at for at, _ in queued] == [at for at, _ in completed]


@pytest.fixture
def prometheus(tmp_path):
    """Start a real Prometheus that scrapes the given URL; returns its address."""
    if shutil.which("prometheus") is None:
        pytest.skip("no Prometheus installed (apt: prometheus)")
    processes = []

    def start(target: str) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config = tmp_path / "prometheus.yml"
        address = target.removeprefix("http://")
        config.write_text(f"scrape_configs: [{{job_name: a, scrape_interval: 200ms, scrape_timeout: 200ms, "
                          f"static_configs: [{{targets: ['{address}']}}]}}]\n")  # fmt: skip
        command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                   f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]  # fmt: skip
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        url = f"http://127.0.0.1:{port}"
        for _ in range(200):
            try:
                answer = urllib.request.urlopen(f"{url}/api/v1/query?query=wan_queue_jobs", timeout=1).read()
                if b"instance" in answer:  # its first scrape comes about five seconds after its start
                    return url
            except OSError:
                pass
            time.sleep(0.1)
        raise AssertionError("Prometheus did not become ready")

    yield start
    for process in processes:
        process.terminate()
        process.wait(20)


def test_takes_the_same_window_from_prometheus(standin, profile, prometheus):
    url = standin("--service", 0.1)
    metrics = {"prometheus_url": prometheus(url), "every_seconds": 0.5}
    result = run_profile(profile(target={"url": url}, load=LOAD, limits=LIMITS, metrics=metrics))
    completed = next(points for key, points in result.series.items() if 'status="completed"' in key)
    seconds = result.window["end"] - result.window["start"]
    assert completed[-1][1] >= 3
    assert 0 <= completed[0][0] <= completed[-1][0] <= seconds
    assert any(key.startswith("wan_queue_jobs{") for key in result.series)


def test_a_wrong_prometheus_address_stops_the_run_before_it_begins():
    async def main():
        async with collect(Metrics(prometheus_url="http://127.0.0.1:9"), time.time()):
            raise AssertionError("the run began")

    with pytest.raises(TargetUnavailable, match="metrics.prometheus_url http://127.0.0.1:9"):
        asyncio.run(main())
