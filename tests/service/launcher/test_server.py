"""The launcher against the real tritonserver with a minimal Python model."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from service.launcher.install import (
    ModelLoadFailed,
    PortInUse,
    PythonNotSupported,
    RepositoryMissing,
    TritonExited,
    TritonNotFound,
    find_installation,
)
from service.launcher.server import PROJECT_ROOT, TritonServer, pause_after
from service.worker import run_directories
from tests.service.launcher import minimal_repository


@pytest.fixture
def repository(tmp_path) -> Path:
    return minimal_repository.write(tmp_path)


@pytest.fixture
def server(repository):
    with TritonServer(repository, restart_limit=3) as running:
        yield running


@dataclass(frozen=True)
class Traces:
    """What a launcher's server may leave behind."""

    pids: set[int]
    files: list[Path]  # shared memory regions and the temporary folder

    def wait_until_gone(self) -> None:
        deadline = time.monotonic() + 20
        while self._left() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not self._left()

    def _left(self) -> list:
        return [pid for pid in self.pids if psutil.pid_exists(pid)] + [path for path in self.files if path.exists()]


def guard_of(repository: Path) -> psutil.Process:
    """The guard of the one server that serves `repository`."""
    option = f"--model-repository={repository}"
    (guard,) = (p for p in psutil.process_iter(["cmdline"]) if {option, "--shm-prefix"} <= set(p.info["cmdline"] or ()))
    return guard


def traces(repository: Path) -> Traces:
    guard = guard_of(repository)
    command = guard.cmdline()
    prefix, folder = (command[command.index(option) + 1] for option in ("--shm-prefix", "--folder"))
    regions = list(Path("/dev/shm").glob(f"{prefix}*"))
    assert regions
    return Traces({guard.pid, *(p.pid for p in guard.children(recursive=True))}, [*regions, Path(folder)])


def echo(server: TritonServer, first: int = 3, seconds: float | None = None) -> list[int]:
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        tensor = grpcclient.InferInput("X", [2], "INT32")
        tensor.set_data_from_numpy(np.array([first, 4], np.int32))
        return client.infer("echo", [tensor], client_timeout=seconds).as_numpy("Y").tolist()


def wait_for_restart(server: TritonServer, restarts: int) -> None:
    deadline = time.monotonic() + 30
    while server.restarts < restarts and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.restarts == restarts
    assert server.wait_ready(30)


def test_it_starts_serves_reports_progress_and_leaves_nothing_behind(repository):
    seen = []
    server = TritonServer(repository, on_progress=lambda *event: seen.append(event))
    with server:
        left = traces(repository)
        assert seen == [("echo", 1, 1)]
        assert server.ready
        assert len(server.stubs) == 2
        assert echo(server) == [3, 4]
        assert urllib.request.urlopen(server.metrics_url).status == 200
        assert server.log_path.is_file()
        assert server.log_path.parent == repository.parent / "log"
    left.wait_until_gone()
    assert not server.ready
    server.stop()  # twice is allowed


def test_a_killed_stub_is_replaced_on_the_same_ports(server):
    url = server.grpc_url
    os.kill(server.stubs[0].process.pid, signal.SIGKILL)
    wait_for_restart(server, 1)
    assert server.grpc_url == url
    assert echo(server) == [3, 4]


def test_it_starts_again_when_a_worker_says_that_a_stage_hangs(repository, tmp_path):
    with TritonServer(repository, run_dir=tmp_path / "run") as server:
        run_directories.mark_broken(tmp_path / "run")
        wait_for_restart(server, 1)
        assert run_directories.broken_since(tmp_path / "run") is None
        assert echo(server) == [3, 4]


def test_a_killed_server_is_replaced(server, repository):
    left = traces(repository)
    os.kill(server.stubs[0].process.parent().pid, signal.SIGKILL)
    wait_for_restart(server, 1)
    assert echo(server) == [3, 4]
    left.wait_until_gone()


def test_after_too_many_restarts_it_gives_up_and_says_why(repository):
    with TritonServer(repository, restart_limit=0) as server:
        os.kill(server.stubs[0].process.pid, signal.SIGKILL)
        time.sleep(1.5)  # longer than the time between two looks
        with pytest.raises(TritonExited, match=r"given up after 0 restarts; last: the Python process of echo_0_\d"):
            server.wait_ready(20)


def foreground(repository: Path, *options: str) -> subprocess.Popen:
    """`python -m service.launcher` on free ports, once it has said that it is ready."""
    command = [sys.executable, "-m", "service.launcher", "--repository", str(repository)]
    command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", *options]
    process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Triton is ready"):
            return process
    raise AssertionError("".join(lines))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_foreground_program_ends_on_a_signal_without_a_trace(repository, number):
    process = foreground(repository)
    left = traces(repository)
    assert len(left.pids) == 4  # guard, server, two stubs
    process.send_signal(number)
    assert process.wait(30) == 0
    left.wait_until_gone()


def test_everything_ends_when_the_launcher_is_killed(repository):
    process = foreground(repository)
    left = traces(repository)
    process.kill()
    process.wait()
    left.wait_until_gone()


def test_when_the_guard_is_killed_nothing_stays_of_a_busy_server_and_another_starts(repository):
    with TritonServer(repository, restart_limit=None) as server:
        left = traces(repository)
        with pytest.raises(InferenceServerException, match="Deadline"):
            echo(server, minimal_repository.STALL, seconds=1)
        guard_of(repository).kill()
        left.wait_until_gone()
        wait_for_restart(server, 1)
        assert echo(server) == [3, 4]


@pytest.mark.slow
def test_what_a_killed_guard_without_a_launcher_left_is_removed_by_the_next_start(repository, tmp_path):
    process = foreground(repository)
    left = traces(repository)
    guard = guard_of(repository)
    guard.suspend()  # it would clean up as soon as its launcher is gone
    process.kill()
    process.wait()
    guard.kill()
    other = minimal_repository.write(tmp_path / "other")
    with TritonServer(other) as running, TritonServer(other):  # a second start leaves the first alone
        left.wait_until_gone()
        assert echo(running) == [3, 4]


@pytest.mark.slow
def test_without_a_limit_it_is_started_until_it_comes_up_again(repository, monkeypatch, caplog):
    monkeypatch.setattr("service.launcher.server.LONGEST_PAUSE_SECONDS", 0.1)
    model = repository / "echo" / "1" / "model.py"
    sound = model.read_text()
    with TritonServer(repository, restart_limit=None) as server:
        model.write_text("raise RuntimeError('no weights today')")
        os.kill(server.stubs[0].process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 120
        while caplog.text.count("did not start again") < 6 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert caplog.text.count("no weights today") >= 6
        model.write_text(sound)
        assert server.wait_ready(60)
        assert echo(server) == [3, 4]


def test_the_pauses_between_starts_that_fail_grow_up_to_a_minute():
    assert [pause_after(ends) for ends in range(5)] == [0, 0, 2, 4, 8]
    assert pause_after(5000) == 60


def test_a_port_in_use_is_named(repository):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"gRPC port {port} cannot be opened on 127.0.0.1"):
            TritonServer(repository, grpc_port=port).start()


def test_a_model_that_does_not_load_is_quoted(tmp_path):
    repository = minimal_repository.write(tmp_path, 'raise ValueError("weights are missing; run the export")')
    with pytest.raises(
        ModelLoadFailed, match="model echo failed to load: ValueError: weights are missing; run the export"
    ):
        TritonServer(repository).start()


def test_a_bad_setting_of_a_stage_stops_the_start_and_is_named(tmp_path):
    repository = minimal_repository.write(tmp_path, "load_settings()")
    with pytest.raises(ModelLoadFailed, match="WAN_CHECKPOINT_SECONDS is '-1'; allowed: greater than 0"):
        TritonServer(repository, environment={"WAN_CHECKPOINT_SECONDS": "-1"}).start()


def test_a_server_that_ends_early_is_reported_with_its_log(tmp_path, repository):
    binary = tmp_path / "triton" / "bin" / "tritonserver"
    binary.parent.mkdir(parents=True)
    binary.write_text("#!/bin/sh\necho 'error: no licence for this planet'\nexit 3\n")
    binary.chmod(0o755)
    python = tmp_path / "triton" / "backends" / "python"
    python.mkdir(parents=True)
    shutil.copy(find_installation().stub, python)
    with pytest.raises(TritonExited, match="(?s)ended with status 3.*no licence for this planet.*log: "):
        TritonServer(repository, tritonserver=binary).start()


def test_a_folder_that_was_never_exported_names_the_command(tmp_path):
    with pytest.raises(RepositoryMissing, match="python -m export CHECKPOINT --target cpu --out"):
        TritonServer(tmp_path).start()


def test_a_binary_that_does_not_exist_is_reported(repository):
    with pytest.raises(
        TritonNotFound, match="no tritonserver at /nowhere/tritonserver: install the nvidia-pytriton package"
    ):
        TritonServer(repository, tritonserver="/nowhere/tritonserver").start()


def test_an_installation_for_another_python_names_the_version_to_use(tmp_path, repository):
    other = tmp_path / "triton"
    (other / "bin").mkdir(parents=True)
    (other / "bin" / "tritonserver").touch()
    (other / "backends" / "python").mkdir(parents=True)
    (other / "backends" / "python" / "triton_python_backend_stub").write_bytes(b"\x7fELF...libpython3.99.so.1.0...")
    with pytest.raises(PythonNotSupported, match="is built for Python 3.99, this is Python 3.*python3.99"):
        TritonServer(repository, tritonserver=other / "bin" / "tritonserver").start()
