"""The preStop command against a process that behaves like a worker: what it waits for and when it hurries."""

import json
import subprocess
import sys
import time

import pytest

from service.worker.drain import main

JOB = "video_" + "0" * 32 + "-1"
# Counts its SIGTERMs; ends and removes its directory on the second one, or after `seconds`.
WORKER = """
import pathlib, shutil, signal, sys, time
run, seconds, log = pathlib.Path(sys.argv[1]), float(sys.argv[2]), pathlib.Path(sys.argv[3])
signals = []
signal.signal(signal.SIGTERM, lambda *_: signals.append(time.monotonic()))
print("ready", flush=True)
end = time.monotonic() + seconds
while time.monotonic() < end and len(signals) < 2:
    time.sleep(0.02)
if len(signals) < 2:
    shutil.rmtree(run, ignore_errors=True)
else:
    (run / "cancel").touch()
log.write_text(str(len(signals)))
"""


@pytest.fixture
def start(tmp_path):
    """Start a worker with one running job: `start(seconds, eta)` gives the arguments for its drain and its process."""
    processes = []

    def go(seconds: float, progress: dict | None):
        run = tmp_path / "run" / JOB
        run.mkdir(parents=True)
        if progress is not None:
            (run / "progress.json").write_text(json.dumps(progress))
        command = [sys.executable, "-c", WORKER, str(run), str(seconds), str(tmp_path / "signals")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        process.stdout.readline()
        return ["--run-dir", str(tmp_path / "run"), "--pid", str(process.pid)], process

    yield go
    for process in processes:
        process.kill()
        process.wait()


def signals(tmp_path, process) -> int:
    process.wait(10)
    return int((tmp_path / "signals").read_text())


def denoising(eta: float | None) -> dict:
    return {"step": 3, "steps": 50, "phase": "denoise", "eta_seconds": eta}


def test_a_job_that_fits_is_waited_for(start, tmp_path):
    arguments, process = start(1.0, denoising(0.5))
    assert main([*arguments, "--budget", "20", "--finish", "1"]) == 0
    assert signals(tmp_path, process) == 1


def test_a_job_that_does_not_fit_is_handed_over_at_once(start, tmp_path):
    arguments, process = start(60, denoising(300))
    began = time.monotonic()
    assert main([*arguments, "--budget", "30"]) == 0
    assert time.monotonic() - began < 10
    assert signals(tmp_path, process) == 2


def test_a_job_that_stores_its_video_is_waited_for(start, tmp_path):
    arguments, process = start(1.0, {"step": 50, "steps": 50, "phase": "decode", "eta_seconds": 5})
    assert main([*arguments, "--budget", "20"]) == 0
    assert signals(tmp_path, process) == 1


def test_a_job_that_takes_longer_than_it_said_is_handed_over_before_the_budget_ends(start, tmp_path):
    arguments, process = start(60, denoising(0.1))
    began = time.monotonic()
    assert main([*arguments, "--budget", "4", "--handover", "2", "--finish", "0"]) == 0
    assert 1.5 < time.monotonic() - began < 4
    assert signals(tmp_path, process) == 2


def test_an_idle_worker_is_told_once(start, tmp_path):
    arguments, process = start(0.5, None)
    (tmp_path / "run" / JOB).rmdir()
    assert main([*arguments, "--budget", "20"]) == 0
    assert signals(tmp_path, process) == 1


def test_a_worker_that_does_not_let_go_ends_the_budget(start, tmp_path):
    arguments, _ = start(60, denoising(1))
    (tmp_path / "run" / (JOB[:-1] + "2")).mkdir()  # a second attempt, which nobody ends
    assert main([*arguments, "--budget", "1.5", "--handover", "0.5", "--finish", "0"]) in (0, 1)


def test_a_worker_that_is_gone_needs_no_drain(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert main(["--run-dir", str(tmp_path), "--pid", str(process.pid), "--budget", "5"]) == 0


@pytest.mark.parametrize("budget", ["0", "-1", "nan"])
def test_a_bad_budget_is_refused(tmp_path, budget):
    with pytest.raises(SystemExit):
        main(["--run-dir", str(tmp_path), f"--budget={budget}"])
