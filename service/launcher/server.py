"""Starts, watches, restarts and stops a local Triton server.

    with TritonServer("build/repository", run_dir="var/run") as triton:
        client = tritonclient.grpc.InferenceServerClient(triton.grpc_url)

`python -m service.launcher --repository build/repository` runs one in the foreground. The processes:

    this program ── guard ── tritonserver ── one Python stub for each instance of a Python model

The guard (`guard`) cleans up behind the server whatever way this program ends, and this program behind a guard that
was killed (`leftovers`). A watching thread starts the server again, on the same ports, when it ends or hangs, when
a stub has died, and when a worker says that a stage hangs.
"""

import contextlib
import logging
import os
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

from service.launcher import install, leftovers
from service.launcher.install import ModelLoadFailed, PortInUse, TritonExited, TritonServerError
from service.launcher.log import LogReader, load_failure, port_conflict, progress, stopped_idle, tail
from service.launcher.processes import Stub, find_stubs, first_dead
from service.worker import run_directories

PROJECT_ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.1
WATCH_SECONDS = 0.5
LIVE_CHECK_SECONDS = 5.0
LIVE_CHECK_FAILURES = 6  # in a row: half a minute without an answer to a request that needs no model
RESTART_WINDOW_SECONDS = 600.0
SHORT_LIFE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 60.0
PORT_ATTEMPTS = 3

logger = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]


class TritonServer:
    """One supervised Triton server on loopback ports.

    Port 0 takes a free one. `run_dir` becomes WAN_RUN_DIR of the stages and `environment` adds to theirs.
    `on_progress(model, ready, total)` is called for every model that became ready. Times in seconds, sizes in bytes.
    `restart_limit` restarts within ten minutes are made, then the server is given up: `failure` says why. Without a limit
    it is started again for ever; one that never comes up, or dies at once, ever more slowly.
    """

    def __init__(
        self,
        repository: str | os.PathLike,
        *,
        run_dir: str | os.PathLike | None = None,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        host: str = "127.0.0.1",
        metrics_host: str | None = None,  # where Prometheus is let in; default: `host`
        log_path: str | os.PathLike | None = None,
        tritonserver: str | os.PathLike | None = None,
        environment: dict[str, str] | None = None,
        cache_bytes: int = 256 << 20,
        start_timeout: float = 600.0,
        exit_timeout: int = 30,
        restart_limit: int | None = 5,
        on_progress: Progress | None = None,
    ):
        self.repository = Path(repository).resolve()
        self.run_dir = Path(run_dir).resolve() if run_dir is not None else None
        self.host, self._metrics_host = host, metrics_host or host
        self.log_path = Path(log_path) if log_path is not None else None
        self.restarts = 0
        self.failure: TritonServerError | None = None
        self._ports = [http_port, grpc_port, metrics_port]
        self._fixed_ports = [port != 0 for port in self._ports]
        self._binary = tritonserver
        self._environment = dict(environment or {})
        self._cache_bytes = cache_bytes
        self._start_timeout, self._exit_timeout, self._restart_limit = start_timeout, exit_timeout, restart_limit
        self._on_progress = on_progress or (lambda model, ready, total: None)
        self._guard: subprocess.Popen | None = None
        self._traces = "", ""  # prefix and temporary folder of the guarded server
        self._stubs: list[Stub] = []
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None

    @property
    def http_address(self) -> str:
        """host:port, as tritonclient.http wants it."""
        return f"{self.host}:{self._ports[0]}"

    @property
    def http_url(self) -> str:
        return f"http://{self.http_address}"

    @property
    def grpc_url(self) -> str:
        """host:port, as tritonclient.grpc wants it."""
        return f"{self.host}:{self._ports[1]}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self.host}:{self._ports[2]}/metrics"

    @property
    def ready(self) -> bool:
        """Whether every model is loaded and every stub alive, as of the last look (twice a second)."""
        return self._ready.is_set()

    @property
    def stubs(self) -> list[Stub]:
        return list(self._stubs)

    def __enter__(self) -> "TritonServer":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        """Return when every model is ready; raises a TritonServerError that says what to do."""
        found = install.find_installation(self._binary)
        leftovers.sweep()
        install.check_shm(install.required_shm(install.read_manifest(self.repository)))
        for name, port in zip(("HTTP", "gRPC", "metrics"), self._ports, strict=True):
            if port:
                install.check_port(self.host, port, name)
        if self.run_dir:
            self.run_dir.mkdir(parents=True, exist_ok=True)
        self._stopping.clear()
        self.failure = None
        for attempt in range(PORT_ATTEMPTS):
            self._choose_ports()
            try:
                self._launch(found)
                break
            except PortInUse:
                # Another program took a free port between choosing and opening it.
                if all(self._fixed_ports) or attempt == PORT_ATTEMPTS - 1:
                    raise
        self._watcher = threading.Thread(target=self._watch, args=(found,), name="triton-watch", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """End the server, its stubs and everything they left; may be called twice."""
        self._stopping.set()
        if self._watcher:
            self._watcher.join()
            self._watcher = None
        self._end_guard(b"t")

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait for readiness, for example after a restart; raises `failure` if the server was given up."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._ready.wait(POLL_SECONDS):
            if self.failure:
                raise self.failure
            if deadline and time.monotonic() > deadline:
                return False
        return True

    def _choose_ports(self) -> None:
        free = install.free_ports(self.host, len(self._ports))
        self._ports = [
            port if fixed else new for port, fixed, new in zip(self._ports, self._fixed_ports, free, strict=True)
        ]

    def _launch(self, found: install.Installation) -> None:
        """Start the guarded server and wait until it is ready."""
        self.log_path = self._open_log()
        reader = LogReader(self.log_path)
        folder = tempfile.mkdtemp(prefix="wan-triton-")
        shm_prefix = f"{leftovers.FAMILY}{uuid.uuid4().hex[:12]}_"
        self._traces = shm_prefix, folder
        command = self._command(found, install.prepare_backends(found, Path(folder)), shm_prefix)
        options = ["--shm-prefix", shm_prefix, "--folder", folder, "--grace", str(self._exit_timeout + 5)]
        options += ["--launcher", str(os.getpid()), "--"]
        stage_settings = {"WAN_RUN_DIR": str(self.run_dir)} if self.run_dir else {}
        environment = install.environment(found, PROJECT_ROOT, stage_settings | self._environment)
        self._guard = guard = leftovers.start_guard(options + command, environment, self.log_path, *self._traces)
        try:
            self._wait_until_ready(guard, reader)
        except BaseException:
            self._end_guard(b"k")
            raise

    def _open_log(self) -> Path:
        path = self.log_path
        if path is None:
            writable = os.access(self.repository.parent, os.W_OK)
            folder = self.repository.parent / "log" if writable else Path(tempfile.gettempdir()) / "wan-triton-log"
            path = folder / f"tritonserver-{self._ports[0]}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    def _command(self, found: install.Installation, backends: Path, shm_prefix: str) -> list[str]:
        http, grpc, metrics = self._ports
        options = {
            "model-repository": self.repository,
            "backend-directory": backends,
            "cache-directory": found.caches,
            "cache-config": f"local,size={self._cache_bytes}",
            "http-address": self.host,
            "grpc-address": self.host,
            "metrics-address": self._metrics_host,
            "http-port": http,
            "grpc-port": grpc,
            "metrics-port": metrics,
            "exit-timeout-secs": self._exit_timeout,
            "metrics-config": "counter_latencies=true",
            "backend-config": f"python,shm-region-prefix-name={shm_prefix}",
        }
        command = [str(found.binary), "--disable-auto-complete-config"]
        command += [f"--{key}={value}" for key, value in options.items()]
        return [*command, f"--backend-config=python,stub-timeout-seconds={int(self._start_timeout)}"]

    def _wait_until_ready(self, guard: subprocess.Popen, reader: LogReader) -> None:
        total = sum(1 for path in self.repository.iterdir() if (path / "config.pbtxt").is_file())
        ready = 0
        deadline = time.monotonic() + self._start_timeout
        while True:
            for event, model in progress(reader.new_lines()):
                if event == "ready":
                    ready += 1
                    self._on_progress(model, ready, total)
            if guard.poll() is not None:
                raise self._explain(guard, reader.all_lines())
            if ready == total and self._answers("/v2/health/ready"):
                break
            if time.monotonic() > deadline:
                raise TritonExited(
                    f"not ready after {self._start_timeout:.0f} s ({ready} of {total} models); log: {self.log_path}"
                )
            if self._stopping.is_set():
                raise TritonExited("stopped while it was starting")
            time.sleep(POLL_SECONDS)
        self._stubs = find_stubs(guard.pid)
        if self.run_dir:
            run_directories.clear_broken(self.run_dir)
        self._ready.set()

    def _explain(self, guard: subprocess.Popen, lines: list[str]) -> TritonServerError:
        if reason := load_failure(lines):
            return ModelLoadFailed(f"{reason}\nlog: {self.log_path}")
        if reason := port_conflict(lines):
            return PortInUse(f"{reason}\nstop the program that holds the port or choose another")
        return TritonExited(f"tritonserver ended with status {guard.returncode}\n{tail(lines)}\nlog: {self.log_path}")

    def _answers(self, path: str, timeout: float = LIVE_CHECK_SECONDS) -> bool:
        try:
            with urllib.request.urlopen(self.http_url + path, timeout=timeout) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def _end_guard(self, order: bytes) -> None:
        """Tell the guard to stop ("t") or kill ("k") the server and wait until it has cleaned up."""
        self._ready.clear()
        guard, self._guard, self._stubs = self._guard, None, []
        if guard is None or guard.stdin is None or self.log_path is None:
            return
        log = LogReader(self.log_path)
        with contextlib.suppress(BrokenPipeError):  # it has already ended
            guard.stdin.write(order)
            while order == b"t" and guard.poll() is None:
                if stopped_idle(log.all_lines()):
                    guard.stdin.write(b"k")
                    break
                time.sleep(POLL_SECONDS)
        if guard.wait() < 0:  # killed, before it could clean up
            leftovers.remove(*self._traces)
        guard.stdin.close()

    def _watch(self, found: install.Installation) -> None:
        """Restart the server whenever something of it has died; runs in its own thread until `stop`."""
        recent: list[float] = []
        early_ends = 0  # in a row
        while not self._stopping.is_set():
            began = time.monotonic()
            reason = self._wait_for_trouble()
            if reason is None:
                return
            early_ends = early_ends + 1 if time.monotonic() - began < SHORT_LIFE_SECONDS else 0
            recent = [t for t in recent if t > time.monotonic() - RESTART_WINDOW_SECONDS] + [time.monotonic()]
            if self._restart_limit is not None and len(recent) > self._restart_limit:
                self._give_up(
                    TritonExited(f"given up after {self._restart_limit} restarts; last: {reason}; log: {self.log_path}")
                )
                return
            # A server with a dead stub does not end before its exit timeout, and nothing it runs can be saved.
            self._end_guard(b"k")
            pause = pause_after(early_ends)
            logger.warning(
                "%s; starting Triton again in %g s (for the %d. time in ten minutes)", reason, pause, len(recent)
            )
            if self._stopping.wait(pause):
                return
            try:
                self._launch(found)
                self.restarts += 1
            except (TritonServerError, OSError) as error:
                logger.error("Triton did not start again: %s", error)

    def _give_up(self, failure: TritonServerError) -> None:
        logger.error("%s", failure)
        self._end_guard(b"k")
        self.failure = failure

    def _wait_for_trouble(self) -> str | None:
        """Block until something died (say what) or `stop` was called (None)."""
        next_check, failures = time.monotonic() + LIVE_CHECK_SECONDS, 0
        while not self._stopping.wait(WATCH_SECONDS):
            if self._guard is None:
                return "the last start failed"
            if self._guard.poll() is not None:
                return f"tritonserver ended with status {self._guard.returncode}"
            if dead := first_dead(self._stubs):
                return f"{dead} died"
            if self.run_dir and run_directories.broken_since(self.run_dir):
                return "a worker says that a stage hangs"
            if time.monotonic() >= next_check:
                failures = 0 if self._answers("/v2/health/live") else failures + 1
                next_check = time.monotonic() + LIVE_CHECK_SECONDS
                if failures >= LIVE_CHECK_FAILURES:
                    return f"tritonserver gave no sign of life in {failures} checks"
        return None


def pause_after(early_ends: int) -> float:
    """Seconds to wait before the next start when so many in a row ended early; the first is forgiven."""
    return min(2.0 ** min(early_ends - 1, 10), LONGEST_PAUSE_SECONDS) if early_ends > 1 else 0.0
