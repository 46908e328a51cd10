"""`python -m service.launcher.probe startup|ready|live`: does this pod's Triton work? For the exec probes of its container.

Triton answers 200 to health questions long after a Python stage has died (triton-inference-server/server issues 7230, 8604),
so this program asks the process table and the stages themselves:

    startup   every model is ready and one real request passed all stages; asks again for `--within` seconds
    ready     the server and every model are ready, no Python process is missing
    live      the server answers, no Python process is missing, a real request passes the tokenizer, no denoise slot is stuck,
              and no worker has said that a stage hangs (`--run-dir`)

A long job never fails a probe: nothing here waits behind one, and a slot counts as stuck only after `--stall` seconds
without a step. Exit status 0 or 1; the reason goes to standard output, where kubelet's event shows it.
"""

import argparse
import http.client
import json
import re
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from contract.tensors import ENSEMBLE
from service.launcher.processes import find_stubs
from service.worker.run_directories import broken_since

INSTANCE = re.compile(
    r'^wan_denoise_(inflight|heartbeat_timestamp_seconds)\{[^}]*slot="([^"]*)"[^}]*\} (\S+)$', re.MULTILINE
)


RETRY_SECONDS = 1.0


class ProbeFailed(Exception):
    """The pod does not do its work; the message says what is wrong."""


class Triton:
    """The few questions that a probe asks over HTTP."""

    def __init__(self, url: str, metrics_url: str, timeout: float):
        self.url, self.metrics_url, self.timeout = url, metrics_url, timeout

    def _call(self, method: str, url: str, body: dict | None = None) -> tuple[int, str]:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname or "localhost", parts.port, timeout=self.timeout)
        try:
            connection.request(method, parts.path, json.dumps(body) if body is not None else None)
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace")
        except TimeoutError:
            raise ProbeFailed(f"{method} {parts.path}: no answer within {self.timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise ProbeFailed(f"{method} {parts.path}: {error}") from None
        finally:
            connection.close()

    def _ask(self, method: str, path: str, body: dict | None = None) -> str:
        status, text = self._call(method, self.url + path, body)
        if status != 200:
            raise ProbeFailed(f"{method} {path}: {status} {text[:300]}")
        return text

    def check_health(self, kind: str) -> None:
        """`kind` is live or ready."""
        self._ask("GET", f"/v2/health/{kind}")

    def models(self) -> list[str]:
        """Names of the loaded models; one that is not ready is a failure."""
        index = json.loads(self._ask("POST", "/v2/repository/index", {}))
        if not index:
            raise ProbeFailed("the server has no models")
        for model in index:
            if model.get("state") != "READY":
                raise ProbeFailed(
                    f"model {model['name']} is {model.get('state', 'not loaded')}: {model.get('reason', '')}"
                )
        return sorted({model["name"] for model in index})

    def python_instances(self) -> int:
        """How many Python processes the loaded models need."""
        total = 0
        for name in self.models():
            config = json.loads(self._ask("GET", f"/v2/models/{name}/config"))
            if config.get("backend") == "python":
                groups = config.get("instance_group") or [{}]
                total += sum(group.get("count", 1) * max(1, len(group.get("gpus") or [])) for group in groups)
        return total

    def infer(self, model: str, output: str, **inputs: tuple[str, object]) -> None:
        """One real request; `inputs` maps a name to (Triton type, value)."""
        tensors = [{"name": n, "datatype": kind, "shape": [1], "data": [value]} for n, (kind, value) in inputs.items()]
        self._ask("POST", f"/v2/models/{model}/infer", {"inputs": tensors, "outputs": [{"name": output}]})

    def check_slots(self, stall: float) -> None:
        """No denoise slot may be busy without a step for `stall` seconds."""
        status, text = self._call("GET", self.metrics_url)
        if status != 200:
            raise ProbeFailed(f"GET {self.metrics_url}: {status}")
        slots: dict[str, dict[str, float]] = {}
        for name, slot, value in INSTANCE.findall(text):
            slots.setdefault(slot, {})[name] = float(value)
        for slot, values in slots.items():
            quiet = time.time() - values.get("heartbeat_timestamp_seconds", time.time())
            if values.get("inflight") and quiet > stall:
                raise ProbeFailed(f"denoise slot {slot} is busy but made no step for {quiet:.0f} s")


def check_processes(triton: Triton, server_pid: int) -> None:
    needed, found = triton.python_instances(), [stub for stub in find_stubs(server_pid) if not stub.is_dead()]
    if len(found) < needed:
        names = ", ".join(sorted(stub.instance for stub in found)) or "none"
        raise ProbeFailed(f"{needed - len(found)} of {needed} Python stages are dead; alive: {names}")


def check_broken(run_dir: Path, server_pid: int) -> None:
    """The worker says that a stage hangs; what it said before this server began is of no concern."""
    since = broken_since(run_dir)
    if since is not None and since > psutil.Process(server_pid).create_time():
        raise ProbeFailed(f"the worker said {time.time() - since:.0f} s ago that a stage hangs")


def startup(triton: Triton, options: argparse.Namespace) -> None:
    ready(triton, options)
    # The default size of the checkpoint, because that is what will be asked for; one step is enough to touch everything.
    triton.infer(ENSEMBLE, "INFO", PROMPT=("BYTES", "warm up"), STEPS=("INT32", 1), SEED=("INT64", 0))


def ready(triton: Triton, options: argparse.Namespace) -> None:
    triton.check_health("ready")
    check_processes(triton, options.server_pid)


def live(triton: Triton, options: argparse.Namespace) -> None:
    triton.check_health("live")
    check_processes(triton, options.server_pid)
    triton.infer("tokenizer", "REQUEST", PROMPT=("BYTES", "are you alive"), SEED=("INT64", 0))
    triton.check_slots(options.stall)
    if options.run_dir is not None:
        check_broken(options.run_dir, options.server_pid)


PROBES = {"startup": startup, "ready": ready, "live": live}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m service.launcher.probe", description=__doc__.split("\n")[0])
    parser.add_argument("probe", choices=PROBES)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="Triton's HTTP address")
    parser.add_argument("--metrics-url", default="http://127.0.0.1:8002/metrics")
    parser.add_argument(
        "--server-pid", type=int, default=1, help="process above Triton (default: the container's first process)"
    )
    parser.add_argument("--timeout", type=float, default=10, help="seconds for each question")
    parser.add_argument(
        "--within", type=float, default=0, help="seconds for which a probe that fails is tried again (default: once)"
    )
    parser.add_argument("--run-dir", type=Path, help="the WAN_RUN_DIR that Triton shares with the worker")
    parser.add_argument(
        "--stall", type=float, default=1200, help="seconds without a step after which a busy slot is stuck"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    deadline = time.monotonic() + options.within
    while True:
        try:
            PROBES[options.probe](Triton(options.url, options.metrics_url, options.timeout), options)
            return 0
        except ProbeFailed as failure:
            if time.monotonic() + RETRY_SECONDS >= deadline:
                print(failure)
                return 1
        time.sleep(RETRY_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
