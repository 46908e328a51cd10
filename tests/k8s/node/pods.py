"""What kubelet does with a pod, in small: volumes, network, order of containers, probes, preStop, the end within the grace period."""

import json
import secrets
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.k8s.node.containers import Place, bundle
from tests.k8s.node.images import Image, run
from tests.k8s.node.volumes import Volumes

BRIDGE, PREFIX = "wan-check0", "10.213.77"


class Node:
    """A bridge for pods below `folder`; use it in a `with`. `images` are by the name that the manifests give them."""

    def __init__(self, folder: Path, images: dict[str, Image]):
        self.folder, self.images = folder, images
        self.pods: list[Pod] = []
        self.hosts: dict[str, str] = {}  # name of a service -> address of its pod

    def __enter__(self) -> "Node":
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{PREFIX}.1/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        return self

    def __exit__(self, *_error) -> None:
        for pod in reversed(self.pods):
            pod.remove()
        run("ip", "link", "delete", BRIDGE)

    def pod(self, workload: dict, objects: list[dict]) -> "Pod":
        """A pod of a Deployment or StatefulSet, not started yet; services that choose it lead to it."""
        pod = Pod(self, workload, objects, f"{PREFIX}.{len(self.pods) + 2}")
        self.pods.append(pod)
        labels = workload["spec"]["template"]["metadata"]["labels"].items()
        for item in objects:
            if item["kind"] == "Service" and item["spec"]["selector"].items() <= labels:
                self.hosts[item["metadata"]["name"]] = pod.address
        return pod


@dataclass
class Container:
    """A container of a pod that runs, or did."""

    spec: dict
    id: str
    pod: "Pod"
    process: subprocess.Popen | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.pod.folder / f"{self.spec['name']}.log"

    def start(self) -> None:
        image = self.pod.node.images[self.spec["image"]]
        folder = self.pod.folder / "bundles" / self.spec["name"]
        folder.mkdir(parents=True)
        config = bundle(self.spec, image, self.pod.place, f"/wan-check/{self.id}")
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*self.pod.runtime, "run", "--bundle", str(folder), self.id], stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # fmt: skip

    def execute(self, command: list[str], timeout: float) -> tuple[int, str]:
        """Exit status and output of a command in the container; 124 after `timeout` seconds, as an exec probe that is cut."""
        try:
            done = subprocess.run([*self.pod.runtime, "exec", self.id, *command], capture_output=True, text=True, timeout=timeout)  # fmt: skip
        except subprocess.TimeoutExpired:
            return 124, f"no answer within {timeout:g} s"
        return done.returncode, done.stdout + done.stderr

    def probe(self, kind: str) -> tuple[bool, str]:
        """One attempt of `startupProbe`, `readinessProbe` or `livenessProbe`, and what it said."""
        probe = self.spec[kind]
        timeout = probe.get("timeoutSeconds", 1)
        if "exec" in probe:
            status, output = self.execute(probe["exec"]["command"], timeout)
            return status == 0, output
        port = next(p["containerPort"] for p in self.spec["ports"] if p["name"] == probe["httpGet"]["port"])
        try:
            answer = httpx.get(f"http://{self.pod.address}:{port}{probe['httpGet']['path']}", timeout=timeout)
        except httpx.HTTPError as error:
            return False, repr(error)
        return 200 <= answer.status_code < 400, answer.text

    def started(self) -> None:
        """Wait as the startup probe says; raises with the log."""
        probe, said = self.spec["startupProbe"], ""
        for _ in range(probe["failureThreshold"]):
            time.sleep(probe["periodSeconds"] if "httpGet" in probe else 1)
            assert self.process.poll() is None, f"{self.id} ended with {self.process.returncode}\n{self.tail()}"
            good, said = self.probe("startupProbe")
            if good:
                return
        raise AssertionError(f"{self.id} did not start: {said}\n{self.tail()}")

    def stop(self, deadline: float) -> None:
        """preStop, then SIGTERM; raises if the container still runs at the deadline."""
        if hook := self.spec.get("lifecycle", {}).get("preStop"):
            status, output = self.execute(hook["exec"]["command"], deadline - time.monotonic())
            # 137: the container ended before the hook returned, which kubelet reports and leaves at that.
            assert status in (0, 137), f"preStop of {self.id}: {status} {output}"
        subprocess.run([*self.pod.runtime, "kill", self.id, "TERM"], capture_output=True)  # it may be gone already
        try:
            self.process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.id} outlived its grace period\n{self.tail()}") from None

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]


class Pod:
    """One pod of a rendered workload."""

    def __init__(self, node: Node, workload: dict, objects: list[dict], address: str):
        self.node, self.address = node, address
        self.name = f"{workload['metadata']['name']}-{secrets.token_hex(3)}"
        self.folder = node.folder / self.name
        self.folder.mkdir(parents=True)
        self.spec = workload["spec"]["template"]["spec"]
        claims = workload["spec"].get("volumeClaimTemplates", [])
        more = [{"name": c["metadata"]["name"], "persistentVolumeClaim": {"claimName": f"{c['metadata']['name']}-{self.name}"}} for c in claims]  # fmt: skip
        self.spec = self.spec | {"volumes": self.spec["volumes"] + more}
        self.runtime = ["runc", "--root", str(node.folder / "runc")]
        self.volumes = Volumes(self.spec, objects, self.folder / "volumes", node.folder / "claims")
        self.containers: dict[str, Container] = {}
        self.sidecars: list[str] = []
        self._connect()
        fields = {
            "metadata.name": self.name,
            "metadata.namespace": "wan",
            "spec.nodeName": "node-1",
            "status.podIP": address,
        }
        self.place = Place(
            self.spec, fields, self.volumes, f"/var/run/netns/{self.name}", {"/etc/hosts": self.folder / "hosts"}
        )

    def _connect(self) -> None:
        """A network of its own with a leg in the node's bridge."""
        inside, outside = "eth0", f"wan{self.address.rpartition('.')[2]}"
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", outside, "type", "veth", "peer", "name", inside, "netns", self.name)
        run("ip", "link", "set", outside, "master", BRIDGE, "up")
        for command in (
            ["link", "set", "lo", "up"],
            ["address", "add", f"{self.address}/24", "dev", inside],
            ["link", "set", inside, "up"],
        ):
            run("ip", "-n", self.name, *command)

    def start(self) -> None:
        """Init containers one after the other, a sidecar until it has started, then the others."""
        self.write_hosts()
        for spec in self.spec.get("initContainers", []):
            container = self.begin(spec)
            if spec.get("restartPolicy") == "Always":
                self.sidecars.append(spec["name"])
                container.started()
            else:
                assert container.process.wait(3000) == 0, container.tail()
        for container in [self.begin(spec) for spec in self.spec["containers"]]:
            container.started()

    def write_hosts(self) -> None:
        names = {"localhost": "127.0.0.1", self.name: self.address} | self.node.hosts
        (self.folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in names.items()))

    def begin(self, spec: dict) -> Container:
        container = Container(spec, f"{self.name}-{spec['name']}", self)
        self.containers[spec["name"]] = container
        container.start()
        return container

    def running(self) -> list[Container]:
        return [c for c in self.containers.values() if c.process is not None and c.process.poll() is None]

    def stop(self) -> float:
        """Main containers first, sidecars after them in reverse order, all within the grace period; returns the seconds it took."""
        began = time.monotonic()
        deadline = began + self.spec["terminationGracePeriodSeconds"]
        order = [name for name in self.containers if name not in self.sidecars] + self.sidecars[::-1]
        for name in order:
            if self.containers[name].process.poll() is None:
                self.containers[name].stop(deadline)
        return time.monotonic() - began

    def remove(self) -> None:
        for container in self.running():
            subprocess.run([*self.runtime, "kill", container.id, "KILL"], capture_output=True)
            container.process.wait(30)
        for container in self.containers.values():
            subprocess.run([*self.runtime, "delete", "--force", container.id], capture_output=True)
        self.volumes.remove()
        run("ip", "netns", "delete", self.name)
        shutil.rmtree(self.folder / "bundles", ignore_errors=True)
