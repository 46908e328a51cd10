"""The manifests' queries and commands against the real thing: Prometheus scrapes a gateway, a worker and Triton at work.

One deployment serves the whole module; its pods are processes. The tests run in order, as one story.
"""

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import time

import httpx
import pytest
import yaml

from contract import Defaults, ModelCard
from contract.cost import CostModel
from loadtest.fleet.scaling import ScalingPolicy, replicas_for
from service.settings import DEFAULT_COSTS
from tests.k8s.prometheus import Prometheus, free_port
from tests.k8s.rendering import K8S, ROOT, container

pytestmark = pytest.mark.slow

POLICY = ScalingPolicy.from_manifest()
SMALL = {"num_frames": 5, "steps": 8, "cache_threshold": 0.0}
BUSY = 'sum(wan_workers{namespace="wan",state="busy"})'  # at this moment; the rule takes the mean of some minutes
QUEUED = 'sum(max by (priority) (wan_queue_jobs{namespace="wan"}))'
LONG = {"steps": 1000, "num_frames": 5, "size": "512x512", "cache_threshold": 0.0}


class Process:
    """A program of a pod, with its log."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], folder):
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=ROOT, env=os.environ | environment, stdout=log, stderr=log
            )

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Deployment:
    """Gateway, workers and Prometheus around one Triton; workers come and go as replicas do."""

    def __init__(self, triton, checkpoint, folder):
        self.folder = folder
        self.gateway_port, self.worker_ports = free_port(), {"w1": free_port(), "w2": free_port()}
        self.environment = {
            "WAN_STATE_DIR": str(folder), "WAN_RUN_DIR": str(triton.run_dir), "WAN_TRITON_URL": triton.grpc_url,
            "WAN_MODEL_CARD": str(checkpoint / "wan.json"), "WAN_SLOTS": "1", "WAN_MODEL_NAME": "wan", "WAN_DRAIN_SECONDS": "540",
            "WAN_LEASE_SECONDS": "30", "WAN_LOG_LEVEL": "INFO", "OMP_NUM_THREADS": "1", "BENTOML_DO_NOT_TRACK": "true",
            "BENTOML_HOME": str(folder / "bentoml"), "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
        }  # fmt: skip
        (folder / "metrics").mkdir()
        self.processes: dict[str, Process] = {}
        self.triton_metrics = triton.metrics_url.removeprefix("http://").removesuffix("/metrics")
        self._started = contextlib.ExitStack()

    def start(self) -> None:
        """Whatever fails or skips on the way, `stop` ends what was started."""
        folder = self.folder
        self._started.callback(self._stop_processes)
        command = [
            "bentoml",
            "serve",
            "service.service:WanService",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.gateway_port),
        ]
        self.processes["gateway"] = Process("gateway", command, self.environment, folder)
        workers = {name: [f"127.0.0.1:{port}"] for name, port in self.worker_ports.items()}
        workers["w1"] = [self.triton_metrics, *workers["w1"]]
        rules = folder / "rules.yaml"
        groups = yaml.safe_load((K8S / "components/monitoring/rules.yaml").read_text())["spec"]["groups"]
        rules.write_text(yaml.safe_dump({"groups": [group | {"interval": "1s"} for group in groups]}))
        gateway = {"g1": [f"127.0.0.1:{self.gateway_port}"]}
        self.prometheus = Prometheus(folder, {"wan-gateway": gateway, "wan-triton": workers}, rules)
        self._started.callback(self.prometheus.stop)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.gateway_port}", timeout=30)
        self._started.callback(self.client.close)
        until(lambda: self._ready(), 120)

    def _ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return self.client.get("/readyz").status_code == 200
        return False

    def start_worker(self, name: str) -> None:
        more = {
            "WAN_WORKER_ID": name,
            "WAN_WORKER_METRICS_PORT": str(self.worker_ports[name]),
            "PROMETHEUS_MULTIPROC_DIR": "",
        }
        environment = {key: value for key, value in (self.environment | more).items() if value}
        self.processes[name] = Process(name, ["service.worker"], environment, self.folder)

    def submit(self, **request) -> str:
        answer = self.client.post("/v1/videos", json={"prompt": "a red circle", "guidance_scale": 1.0} | request)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    def status(self, job: str) -> dict:
        # A connection that was idle for a while may be closed by the server just when it is used again.
        with contextlib.suppress(httpx.TransportError):
            return self.client.get(f"/v1/videos/{job}").json()
        return self.client.get(f"/v1/videos/{job}").json()

    def completed(self, jobs: list[str]) -> bool:
        return all(self.status(job)["status"] == "completed" for job in jobs)

    def stop(self) -> None:
        self._started.close()

    def _stop_processes(self) -> None:
        for process in reversed(self.processes.values()):
            process.stop()


def until(check, seconds: float = 200):
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def wan(triton, checkpoint, tmp_path_factory):
    deployment = Deployment(triton, checkpoint, tmp_path_factory.mktemp("wan"))
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.stop()


def test_the_query_of_the_manifests_gives_the_replicas_of_the_formula(wan):
    """Five long jobs wait, no worker is there: a replica for each, however much longer they are."""
    jobs = [wan.submit(**LONG) for _ in range(5)]
    request = wan.status(jobs[0])
    long = Defaults(width=512, height=512, num_frames=5, steps=1000, guidance_scale=1.0, cache_threshold=0.0)
    cost = CostModel.load(DEFAULT_COSTS).predict(vars(long), ModelCard().geometry)
    expected = 5 * min(cost / POLICY.slot_seconds, 1)
    assert expected >= 2, "the jobs are too cheap to try the formula"
    until(lambda: wan.prometheus.value(POLICY.demand_query) == pytest.approx(expected, rel=1e-3), 30)
    assert wan.prometheus.value(POLICY.busy_query) == 0
    asked = wan.prometheus.value(POLICY.demand_query)
    assert replicas_for(asked, 0, POLICY, current=0) == math.ceil(round(expected, 6))
    assert request["status"] == "queued"
    for job in jobs:
        assert wan.client.post(f"/v1/videos/{job}/cancel").status_code == 200
    until(lambda: wan.prometheus.value(POLICY.demand_query) == 0, 30)


def test_a_second_worker_helps_to_drain_the_queue(wan):
    jobs = [wan.submit(**SMALL | {"steps": 500}, seed=n) for n in range(10)]
    wan.start_worker("w1")
    until(lambda: wan.prometheus.value(BUSY) == 1)
    waiting = wan.prometheus.value(QUEUED)
    wan.start_worker("w2")
    until(lambda: wan.prometheus.value(BUSY) == 2)
    until(lambda: wan.prometheus.value(QUEUED) < waiting)
    # Two busy replicas are never too many, however little their jobs have left to do.
    assert replicas_for(wan.prometheus.value(POLICY.demand_query), 2, POLICY, current=2) == 2
    until(lambda: wan.completed(jobs))
    until(lambda: wan.prometheus.value(POLICY.demand_query) == 0 and wan.prometheus.value(BUSY) == 0, 60)
    for name in ("w1", "w2"):
        assert "completed" in wan.processes[name].log.read_text(), f"{name} did no job"


def test_every_query_of_the_dashboards_returns_data(wan):
    jobs = [wan.submit(**SMALL, seed=100 + n) for n in range(3)]
    until(lambda: wan.completed(jobs))
    for path in sorted((K8S / "components/monitoring/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                if "DCGM_" in target["expr"]:
                    continue  # of NVIDIA's exporter, which needs a GPU
                expression = target["expr"].replace("$namespace", "wan").replace("$price", "3.00")
                until(lambda e=expression: wan.prometheus.query(e), 30)


def test_every_rule_is_evaluated_without_an_error(wan):
    answer = httpx.get(f"{wan.prometheus.url}/api/v1/rules", timeout=10).json()
    rules = [rule for group in answer["data"]["groups"] for rule in group["rules"]]
    assert len(rules) == len(re.findall(r"- (?:alert|record):", (K8S / "components/monitoring/rules.yaml").read_text()))
    assert {rule["health"] for rule in rules} == {"ok"}, [rule.get("lastError") for rule in rules]
    firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
    assert not firing - {"WanTargetDown"}


def test_pre_stop_under_load_loses_nothing(wan):
    """The preStop command of the rendered pod, run against a worker with more jobs waiting: each job ends, once."""
    wan.processes["w2"].stop()
    jobs = [wan.submit(**SMALL | {"steps": 800, "cache_threshold": 0.0}, seed=200 + n) for n in range(4)]
    until(lambda: any(wan.status(job)["step"] > 2 for job in jobs))
    hook = container("spot", "Deployment/wan-triton", "worker")["lifecycle"]["preStop"]["exec"]["command"]
    assert hook[:3] == ["python3", "-m", "service.worker.drain"]
    arguments = hook[3:]
    arguments[arguments.index("--run-dir") + 1] = wan.environment["WAN_RUN_DIR"]
    arguments += ["--pid", str(wan.processes["w1"].process.pid), "--finish", "3600"]  # no job fits: all are handed over
    budget = float(arguments[arguments.index("--budget") + 1])
    began = time.monotonic()
    hooked = subprocess.run(
        [sys.executable, "-m", "service.worker.drain", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert hooked.returncode == 0, hooked.stderr
    assert time.monotonic() - began < budget + 2
    wan.processes["w1"].process.wait(15)
    waiting = [wan.status(job)["status"] for job in jobs]
    assert "in_progress" not in waiting, "the worker went with a job in its hands"
    wan.start_worker("w2")
    until(lambda: wan.completed(jobs))
    text = wan.processes["w2"].log.read_text() + wan.processes["w1"].log.read_text()
    assert "handed_over" in text
    resumed = [int(step) for step in re.findall(r'"resumed_from": (\d+)', text)]
    assert any(step > 0 for step in resumed), "the job that was handed over began again"
