"""The scaling study with a stand-in whose workers are known to scale."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtest.__main__ import main
from loadtest.base.inputs import ToolError
from loadtest.traffic.scaling import service

STANDIN = Path(__file__).parents[1] / "standin.py"


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_workers_give_twice_the_videos(port, tmp_path):
    (tmp_path / "p.yaml").write_text("name: s\nload: {kind: closed, users: 1}\nlimits: {requests: 24, seconds: 20}\n")
    start = f"{{python}} {STANDIN} --service 0.1 --forever --port {port} --workers {{workers}}"
    out = tmp_path / "out"
    arguments = ["scaling", str(tmp_path / "p.yaml"), "--url", f"http://127.0.0.1:{port}", "--start", start]
    assert main([*arguments, "--queue", "5,20", "--cycles", "5", "--out", str(out)]) in (0, 1)
    data = json.loads((out / "scaling.json").read_text())
    one, two = data["workers"]
    assert (one["workers"], two["workers"]) == (1, 2)
    assert one["videos"] == two["videos"] == 24
    assert one["per_minute"] == pytest.approx(600, rel=0.15)
    assert two["per_minute"] / one["per_minute"] == pytest.approx(2, rel=0.15)
    assert [row["queued"] for row in data["queue"]] == [5, 20]
    assert (out / "report.html").read_text().count("<svg") == 2
    with socket.socket() as probe:  # the service was stopped
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_service_that_ends_while_starting_is_told_with_its_log(profile, port, tmp_path):
    run = profile(target={"url": f"http://127.0.0.1:{port}"})
    log = tmp_path / "service.log"
    started = service(f"{sys.executable} -c 'print(42); exit(3)'", 1, run, log, 20)
    with pytest.raises(ToolError, match="status 3 while it was starting; log: .*service.log"), started:
        raise AssertionError("it cannot be ready")
    assert log.read_text() == "42\n"


def test_a_terminated_study_stops_the_service(port, tmp_path):
    start = f"{{python}} {STANDIN} --service 60 --forever --port {port} --workers {{workers}}"
    command = [sys.executable, "-m", "loadtest", "scaling", "--only", "workers", "--url", f"http://127.0.0.1:{port}"]
    with subprocess.Popen([*command, "--start", start, "--out", str(tmp_path)]) as process, socket.socket() as probe:
        while process.poll() is None and probe.connect_ex(("127.0.0.1", port)) != 0:
            time.sleep(0.1)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_service_that_is_there_already_is_not_measured_by_mistake(standin, profile, tmp_path):
    run = profile(target={"url": standin("--service", 0.1)})
    started = service(f"{sys.executable} -c 'exit(3)'", 1, run, tmp_path / "log", 20)
    with pytest.raises(ToolError, match="something already answers at http://127.0.0.1:"), started:
        raise AssertionError("it is another service")


def test_a_service_that_never_answers_is_stopped(profile, port, tmp_path):
    run = profile(target={"url": f"http://127.0.0.1:{port}"})
    started = service(f"{sys.executable} -c 'import time; time.sleep(60)'", 1, run, tmp_path / "log", 1)
    with pytest.raises(ToolError, match="not ready after 1 s"), started:
        raise AssertionError("it cannot be ready")
