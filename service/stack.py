"""The whole service on one machine: Triton, gateway and worker as child processes, stopped together."""

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

from service.launcher.server import TritonServer
from service.settings import load_settings

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 120.0
RESTART_PAUSE = 1.0


class StackError(Exception):
    """A part did not start; the message says which and where its log is."""


class Child:
    """A child process that is started again when it dies; its log goes to a file."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path):
        self.name, self.log = name, log
        self._command, self._environment = command, environment
        self._ending = threading.Event()
        self.restarts = 0
        self._family: list[psutil.Process] = []
        self.process = self._launch()
        self._watcher = threading.Thread(target=self._watch, name=f"watch-{name}", daemon=True)
        self._watcher.start()

    def _launch(self) -> subprocess.Popen:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self._command,
                cwd=ROOT,
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this program only, which then stops in order
                preexec_fn=_die_with_parent,
            )

    def _watch(self) -> None:
        while not self._ending.is_set():
            try:
                self.process.wait(0.5)
            except subprocess.TimeoutExpired:
                self._family = _descendants(self.process.pid)
                continue
            if not self._ending.wait(RESTART_PAUSE):
                self._kill_family()  # what a killed parent left behind still serves, on the same port
                self.process = self._launch()
                self.restarts += 1

    def _kill_family(self) -> None:
        """Kill what the process started, also in sessions of their own, as BentoML's workers are."""
        for process in self._family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()  # psutil makes sure that the number was not given to another process
        self._family = []

    def stop(self, seconds: float) -> None:
        """SIGTERM, and SIGKILL for it and all it started after `seconds`."""
        self._ending.set()
        self._watcher.join()
        self._family += _descendants(self.process.pid)
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self._kill_family()
        self.process.kill()
        self.process.wait()

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _die_with_parent() -> None:
    ctypes.CDLL("libc.so.6", use_errno=True).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


class Stack:
    """Context manager; `url` is the gateway's address. `state` keeps jobs, videos, run directories and logs.

    A Triton that dies is started again, however often: the gateway goes on serving what is finished. Only a first start
    that fails ends the stack. `triton_restarts` sets a limit (see `TritonServer`).
    """

    def __init__(
        self,
        repository: Path,
        state: Path,
        port: int = 0,
        host: str = "127.0.0.1",
        workers: int = 1,
        on_progress: Callable[[str], None] = lambda text: None,
        environment: dict[str, str] | None = None,
        triton_restarts: int | None = None,
    ):
        self.repository, self.state, self.host, self.workers = repository, state.absolute(), host, workers
        self.triton_restarts = triton_restarts
        self.port = port or _free_port(host)
        self._say = on_progress
        self._extra = environment or {}
        self.children: dict[str, Child] = {}
        self.triton: TritonServer | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def server(self) -> TritonServer:
        """Triton, while it runs."""
        if self.triton is None:
            raise StackError("Triton does not run")
        return self.triton

    def __enter__(self) -> "Stack":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and wait until it answers; StackError otherwise."""
        logs = self.state / "log"
        logs.mkdir(parents=True, exist_ok=True)
        runs = self.state / "run"
        # The gateway loads while Triton does.
        self._child("gateway", self._gateway_command(), {})
        self.triton = TritonServer(
            self.repository,
            run_dir=runs,
            log_path=logs / "triton.log",
            environment=self._extra,
            restart_limit=self.triton_restarts,
            on_progress=lambda model, ready, total: self._say(f"Triton: {model} is ready ({ready} of {total})"),
        )
        self.triton.start()
        for number in range(self.workers):
            more = {"WAN_TRITON_URL": self.triton.grpc_url}
            self._child(f"worker-{number}", [sys.executable, "-m", "service.worker"], more)
        self._wait_until_ready()

    def _gateway_command(self) -> list[str]:
        bentoml = [sys.executable, "-m", "bentoml", "serve", "service.service:WanService"]
        return [*bentoml, "--host", self.host, "--port", str(self.port), "--timeout-graceful-shutdown", "5"]

    def _child(self, name: str, command: list[str], more: dict[str, str]) -> None:
        environment = {
            "WAN_STATE_DIR": str(self.state),
            "WAN_RUN_DIR": str(self.state / "run"),
            "WAN_METRICS_DIR": str(self.state / "metrics"),
            "WAN_DRAIN_SECONDS": os.environ.get("WAN_DRAIN_SECONDS", "0"),
            "WAN_MODEL_NAME": os.environ.get("WAN_MODEL_NAME", "wan"),
            # one thread each: the cores belong to Triton
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "BENTOML_DO_NOT_TRACK": "true",
            "PROMETHEUS_MULTIPROC_DIR": str(self.state / "metrics-gateway"),
            "BENTOML_HOME": os.environ.get("BENTOML_HOME", str(self.state / "bentoml")),
            **self._extra,
            **more,
        }
        self.children[name] = Child(name, command, environment, self.state / "log" / f"{name}.log")

    def _wait_until_ready(self) -> None:
        self._say("waiting for the gateway and the worker")
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            broken = next((child for child in self.children.values() if child.restarts > 1), None)
            if broken is not None:
                raise StackError(f"{broken.name} ended again and again\n{broken.tail()}\nlog: {broken.log}")
            if self._answers():
                return
            time.sleep(0.2)
        raise StackError(f"not ready after {START_SECONDS:g} s; logs: {self.state / 'log'}")

    def _answers(self) -> bool:
        try:
            if httpx.get(f"{self.url}/readyz", timeout=2).status_code != 200:
                return False
            idle = re.search(
                r'^wan_workers\{.*state="idle"\} (\d+)$', httpx.get(f"{self.url}/metrics", timeout=5).text, re.M
            )
            return idle is not None and idle[1] != "0"
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        """Worker first, so that it hands its jobs over; then the gateway, then Triton."""
        drain = float(self._extra.get("WAN_DRAIN_SECONDS", os.environ.get("WAN_DRAIN_SECONDS", "0")))
        for name in sorted(self.children, key=lambda name: name == "gateway"):
            self.children[name].stop(10 if name == "gateway" else drain + 10)
        self.children.clear()
        if self.triton is not None:
            self.triton.stop()
            self.triton = None


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def exported(
    repository: Path, checkpoint: Path, say: Callable[[str], None], target: str = "cpu", vram: float | None = None
) -> None:
    """Make the Triton repository of the checkpoint; the exporter itself sees when it is up to date."""
    command = [sys.executable, "-m", "export", str(checkpoint), "--target", target, "--out", str(repository)]
    command += [] if vram is None else ["--vram", str(vram)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=_die_with_parent
    ) as process:
        lines = []
        for line in process.stdout or ():
            lines.append(line.rstrip())
            say(f"export: {lines[-1]}")
    if process.returncode != 0:
        raise StackError(f"export failed: {' '.join(lines[-3:])}")


def check_settings() -> None:
    """Fail before anything is started if a setting is bad."""
    load_settings()
