"""One whole load test of the real service: gateway, worker, Triton and the tiny model; the report in a real browser."""

import json

import psutil
import pytest

from loadtest.__main__ import main
from tests.loadtest import browser

PROFILE = """
name: real
target: {{url: "{url}", follow: events}}
load: {{kind: poisson, per_minute: 60}}
mix:
  - {{name: plain, weight: 2, num_frames: 9, steps: 4}}
  - {{name: urgent, num_frames: 5, steps: 4, priority: high}}
prompts: [a red circle moves left, a blue square moves up]
limits: {{requests: 8, seconds: 30, drain_seconds: 100, warmup_requests: 1}}
slo: {{error_rate: 0, total: {{p99: 100}}}}
metrics: {{scrape: ["{url}/metrics", "{triton}"], every_seconds: 0.5}}
"""


@pytest.fixture(scope="module")
def stack(repository, checkpoint, tmp_path_factory):
    from service.stack import Stack

    settings = {"WAN_MODEL_CARD": str(checkpoint / "wan.json")}
    with Stack(repository, tmp_path_factory.mktemp("loadtest-stack"), environment=settings) as running:
        yield running


@pytest.fixture(scope="module")
def ran(stack, tmp_path_factory):
    """A run from the command line; (exit code, result.json as data, folder)."""
    folder = tmp_path_factory.mktemp("real")
    profile = folder / "real.yaml"
    profile.write_text(PROFILE.format(url=stack.url, triton=stack.triton.metrics_url))
    code = main(["run", str(profile), "--out", str(folder / "out"), "--quiet"])
    return code, json.loads((folder / "out" / "result.json").read_text()), folder / "out"


def test_every_video_is_made_and_every_stage_is_known(ran):
    code, result, _ = ran
    assert code == 0
    assert result["summary"]["outcomes"] == {"completed": 8}
    for record in result["records"]:
        assert {"queue", "text_encoder", "denoise", "vae_decoder", "encode"} == set(record["stages"])
        assert record["intended"] <= record["sent"] <= record["accepted"] <= record["finished"] <= record["delivered"]
        assert record["content_bytes"] > 500
        assert record["predicted_gpu_seconds"] > 0
    assert set(result["summary"]["by_shape"]) == {"plain", "urgent"}


def test_the_series_of_the_window_come_from_gateway_and_triton(ran):
    _, result, _ = ran
    completed = next(v for k, v in result["series"].items() if k.startswith("wan_jobs_total") and "completed" in k)
    assert completed[-1][1] - completed[0][1] == 8
    assert any(key.startswith("nv_inference_request_success") and "denoise" in key for key in result["series"])


@pytest.mark.skipif(not browser.CHROMIUM.is_file(), reason="Chromium is not installed (apt: chromium)")
def test_the_report_opens_in_chromium_with_every_plot_drawn(ran):
    pytest.importorskip("playwright")
    _, _, folder = ran
    plots, fetched, errors = browser.look(folder / "report.html")
    assert fetched == []
    assert errors == []
    names = {plot["name"] for plot in plots}
    assert {"latency-over-time", "latency-against-load", "percentiles", "stages", "throughput", "in-system", "outcomes",
            "gpu-seconds", "metric-wan_jobs_total", "metric-wan_queue_jobs"} <= names  # fmt: skip
    assert all(plot["marks"] > 0 and plot["inside"] for plot in plots), plots


def test_tritons_ensemble_takes_the_load_directly(stack, tmp_path):
    for kind, url in (("triton-grpc", f"grpc://{stack.triton.grpc_url}"), ("triton-http", stack.triton.http_url)):
        options = ["--set", "mix=[{name: s, num_frames: 5, steps: 2}]", "--set", "metrics={}", "--quiet"]
        options += ["--set", "limits={requests: 3, seconds: 20, drain_seconds: 60}", "--url", url]
        assert main(["run", kind, *options, "--set", "load.per_minute=120", "--out", str(tmp_path / kind)]) == 0
        summary = json.loads((tmp_path / kind / "result.json").read_text())["summary"]
        assert set(summary["stages"]) == {"text_encoder", "denoise", "vae_decoder"}


@pytest.mark.slow
def test_the_real_service_does_not_leak(stack, tmp_path):
    """Every process stays flat, as do descriptors, shared memory, run directories and database: nothing is let off."""
    tritons = [p for p in psutil.Process().children(recursive=True) if p.name() == "tritonserver"]
    pids = [child.process.pid for child in stack.children.values()] + [process.pid for process in tritons]
    arguments = ["soak", "soak", "--url", stack.url, "--minutes", "0.7", "--every", "0.5", "--quiet"]
    arguments += ["--state-dir", str(stack.state), "--out", str(tmp_path), *(f"--pid={pid}" for pid in pids)]
    code = main(arguments)
    data = json.loads((tmp_path / "soak.json").read_text())
    assert data["problems"] == []
    assert code == 0
    assert data["not_watched"] == []
    names = " ".join(finding["name"] for finding in data["findings"])
    for part in ("rss tritonserver", "fds tritonserver", "threads tritonserver", "rss triton_python_backend_stub",
                 "rss python -m service.worker", "rss python -m bentoml", "rss python -m _bentoml_impl.worker.service",
                 "shm bytes", "shm entries", "run directories", "database bytes"):  # fmt: skip
        assert part in names
    made = json.loads((tmp_path / "result.json").read_text())["summary"]["outcomes"]["completed"]
    assert made >= 10
    assert (tmp_path / "soak.html").read_text().count("<svg") >= 10
