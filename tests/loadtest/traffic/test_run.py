"""`run` from the command line: files, verdict, exit code."""

import csv
import json
import signal
import subprocess
import sys
import time

import httpx
import pytest

from loadtest.__main__ import main

PROFILE = """
name: small
workers: 1
load: {kind: poisson, per_minute: 900}
mix: [{name: small, width: 64, height: 64}, {name: large, width: 128, height: 64}]
limits: {requests: 20, seconds: 10}
slo: {total: {p99: 5}, error_rate: 0, goodput: {within_seconds: 5, share: 0.9}}
"""


@pytest.fixture
def run(tmp_path, standin):
    (tmp_path / "small.yaml").write_text(PROFILE)

    def call(*options: str, service=(0.03, "--factor", "128x64=2")) -> int:
        url = standin("--service", *service)
        return main(["run", str(tmp_path / "small.yaml"), "--url", url, "--out", str(tmp_path / "out"), *options])

    return call


def test_a_run_that_meets_its_slo_exits_with_0_and_leaves_its_files(run, tmp_path, capsys):
    assert run() == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "result.json",
        "records.csv",
        "report.html",
        "table.md",
    }
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["verdict"]["ok"]
    assert result["summary"]["outcomes"] == {"completed": 20}
    shapes = result["summary"]["by_shape"]
    assert shapes["large"]["device_seconds_per_video"] == pytest.approx(0.057, rel=0.01)
    assert shapes["small"]["device_seconds_per_video"] == pytest.approx(0.0285, rel=0.01)
    assert len(list(csv.DictReader((tmp_path / "out" / "records.csv").open()))) == 20
    captured = capsys.readouterr()
    assert "20 completed" in captured.out
    assert "20/20" in captured.err
    assert "total p95" in captured.err


def test_a_missed_slo_exits_with_1_and_names_the_threshold(run, capsys):
    assert run("--quiet", "--set", "slo.total={p99: 0.02}") == 1
    assert "FAILED total p99 (s)" in capsys.readouterr().out


def test_a_closed_loop_keeps_its_users_and_its_bound(run, tmp_path):
    assert run("--quiet", "--set", "load={kind: closed, users: 3}") == 0
    records = json.loads((tmp_path / "out" / "result.json").read_text())["records"]
    assert len(records) == 20
    assert max(record["in_system"] for record in records) == 2


def test_an_interrupt_ends_the_arrivals_and_still_reports(tmp_path, standin):
    (tmp_path / "small.yaml").write_text(PROFILE)
    url = standin("--service", 0.02)
    options = ["--url", url, "--out", str(tmp_path / "out"), "--quiet"]
    command = [sys.executable, "-m", "loadtest", "run", str(tmp_path / "small.yaml"), *options]
    command += ["--set", "load.per_minute=300", "--set", "limits={requests: 1000, seconds: 100}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while 'status="completed"} 0' in httpx.get(f"{url}/metrics").text:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "report:" in said
    requests = json.loads((tmp_path / "out" / "result.json").read_text())["summary"]["requests"]
    assert 1 <= requests < 100


def test_a_service_that_is_down_exits_with_2(tmp_path, capsys):
    (tmp_path / "small.yaml").write_text(PROFILE)
    assert main(["run", str(tmp_path / "small.yaml"), "--url", "http://127.0.0.1:9", "--out", str(tmp_path / "o")]) == 2
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().err
