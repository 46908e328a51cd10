"""The real service, started and stopped for a measurement."""

import json
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import httpx
import psutil
import pytest

from loadtest.__main__ import main
from loadtest.traffic import local_stack
from loadtest.traffic.scaling import LOCAL_STACK

TINY = "mix=[{name: tiny, num_frames: 5, steps: 2}]"


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_every_worker_serves_until_told_to_stop(repository, port):
    before = set(local_stack.FOLDER.glob("state-*"))
    command = [sys.executable, "-m", "loadtest", "serve", "--workers", "2", "--port", str(port)]
    with subprocess.Popen([*command, "--repository", str(repository)], stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        children = psutil.Process(process.pid).children(recursive=True)
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert said == f"serving at http://127.0.0.1:{port} with 2 workers\n"
    assert 'wan_workers{model="wan",state="idle"} 2\n' in metrics
    assert len(children) >= 6  # gateway and its worker, guard and tritonserver, two workers
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert set(local_stack.FOLDER.glob("state-*")) == before


@pytest.mark.slow
def test_scaling_starts_it_with_each_number_of_workers(repository, port, tmp_path):
    start = f"{LOCAL_STACK} --repository {repository}"
    arguments = ["scaling", "--only", "workers", "--workers", "2", "--start", start, "--out", str(tmp_path)]
    arguments += ["--url", f"http://127.0.0.1:{port}", "--set", TINY, "--set", "limits={requests: 6, seconds: 60}"]
    assert main(arguments) == 0
    (row,) = json.loads((tmp_path / "scaling.json").read_text())["workers"]
    assert (row["workers"], row["videos"]) == (2, 6)
    assert 0 < row["device_seconds"] < row["total_p50"] <= row["total_p99"]
    assert "2 workers, always busy" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["smoke", "triton-grpc"])
def test_a_run_brings_its_own_service(kind, repository, tmp_path):
    options = ["--serve", "--repository", str(repository), "--quiet", "--set", TINY, "--out", str(tmp_path)]
    options += ["--set", "limits={requests: 3, seconds: 30, drain_seconds: 60}"]
    assert main(["run", kind, *options]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["summary"]["outcomes"] == {"completed": 3}
    family = "wan_jobs_total" if kind == "smoke" else "nv_inference_request_success"
    assert any(key.startswith(family) for key in result["series"])
    with pytest.raises(httpx.ConnectError):  # it is gone
        httpx.get(result["profile"]["target"]["url"].replace("grpc:", "http:"))


def test_a_profile_is_aimed_at_the_part_that_it_loads(profile):
    triton = SimpleNamespace(
        grpc_url="127.0.0.1:1", http_url="http://127.0.0.1:2", metrics_url="http://127.0.0.1:3/metrics"
    )
    stack = SimpleNamespace(url="http://127.0.0.1:4", server=triton)
    expected = {
        "videos": ("http://127.0.0.1:4", "http://127.0.0.1:4/metrics"),
        "triton-grpc": ("grpc://127.0.0.1:1", "http://127.0.0.1:3/metrics"),
        "triton-http": ("http://127.0.0.1:2", "http://127.0.0.1:3/metrics"),
    }
    for kind, (url, scraped) in expected.items():
        own = {"kind": kind, "url": "grpc://localhost:9" if kind == "triton-grpc" else "http://localhost:9"}
        found = local_stack.aimed(profile(target=own, metrics={"scrape": ["http://localhost:9/metrics"]}), stack)
        assert (found.target.url, found.metrics.scrape) == (url, (scraped,))
    assert local_stack.aimed(profile(), stack).metrics.scrape == ()


def test_what_cannot_be_served_is_said_in_one_sentence(tmp_path, capsys):
    assert main(["serve", "--repository", str(tmp_path), "--port", "0"]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert main(["run", "smoke", "--serve", "--repository", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: --serve: ")


def test_an_address_and_a_service_of_its_own_exclude_each_other(tmp_path, capsys):
    assert main(["run", "smoke", "--serve", "--url", "http://127.0.0.1:3000", "--out", str(tmp_path)]) == 2
    assert "--url is 'http://127.0.0.1:3000' and --serve starts a service of its own" in capsys.readouterr().err
