"""Every image file assembled and started as its manifest says: user, read-only root, no capabilities, volumes, memory, probes, preStop.

`make images-check` runs it, as root and for many minutes; the rest of the suite leaves it alone. The pods of `cpu-demo` have networks of
their own and make a video together; the images of the other overlays start their commands. Tests run in order, as one story.
"""

import json
import os
import shutil
import time
from types import SimpleNamespace

import httpx
import pytest

from tests.k8s.node import images as builds
from tests.k8s.node.pods import Node
from tests.k8s.rendering import GPU_SERVING, OPERATORS_SECRETS, containers, of_kind, render

pytestmark = [
    pytest.mark.skipif(
        "WAN_IMAGES_CHECK" not in os.environ, reason="takes many minutes and a network: make images-check"
    ),
    pytest.mark.timeout(3600),
]
NAMES = {
    "localhost/wan/server-cpu:0.1.0": "server-cpu",
    "localhost/wan/gateway:0.1.0": "gateway",
    "registry.example.com/wan/gateway:0.1.0": "gateway",
    "registry.example.com/wan/server:0.1.0": "server",
    "postgres:17.5-alpine": "postgres",
}
DENIED = """
import os, pathlib
status = dict(line.split(":\\t") for line in pathlib.Path("/proc/self/status").read_text().splitlines())
print(status["Uid"].split()[0], status["Groups"].strip(), int(status["CapBnd"], 16), int(status["CapEff"], 16), status["NoNewPrivs"], status["Seccomp"])
try: pathlib.Path("/app/written").touch()
except OSError as error: print(error.errno)
"""


@pytest.fixture(scope="module")
def images():
    missing = [tool for tool in builds.TOOLS if not shutil.which(tool)]
    assert not missing, f"{missing}: apt-get install buildah debootstrap runc iproute2 golang-github-containers-common"
    assert os.geteuid() == 0, "it mounts, makes networks and becomes other users: run it as root"
    found = {name: builds.assemble(name, recipe) for name, recipe in builds.recipes().items()}
    yield found
    for image in found.values():
        builds.unmount(image)


@pytest.fixture(scope="module")
def node(images):
    folder = builds.FOLDER / "node"
    shutil.rmtree(folder, ignore_errors=True)
    with Node(folder, {name: images[ours] for name, ours in NAMES.items()}) as node:
        yield node


@pytest.fixture(scope="module")
def demo(node):
    """The pods of cpu-demo, ready: database, gateway, Triton with its worker."""
    objects = render("cpu-demo")
    workloads = of_kind("cpu-demo", "StatefulSet", "Deployment")
    pods = {workload["metadata"]["name"]: node.pod(workload, objects) for workload in workloads}
    for name in ("wan-postgres", "wan-gateway", "wan-triton"):
        pods[name].start()
    return SimpleNamespace(**{name.removeprefix("wan-"): pod for name, pod in pods.items()})


def finished(pod, job: str, seconds: float) -> dict:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = httpx.get(f"http://{pod.address}:3000/v1/videos/{job}", timeout=30).json()
        if answer["status"] in ("completed", "failed", "cancelled"):
            return answer
        time.sleep(0.5)
    raise AssertionError(f"still {answer}")


def submitted(pod, **request) -> str:
    body = {"prompt": "a red circle moves left on a black background"} | request
    answer = httpx.post(f"http://{pod.address}:3000/v1/videos", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def test_every_image_of_the_manifests_was_assembled(images):
    for overlay in ("cpu-demo", *GPU_SERVING):
        assert {each.spec["image"] for each in containers(overlay)} <= set(NAMES)
    ours = [images[name] for name in ("server-cpu", "gateway", "server")]
    assert {image.user for image in ours} == {"1000:1000"}


def test_all_pods_start_and_their_probes_pass(demo):
    for pod in (demo.postgres, demo.gateway, demo.triton):
        for container in pod.running():
            for kind in ("readinessProbe", "livenessProbe"):
                good, said = container.probe(kind)
                assert good, f"{container.id} {kind}: {said}\n{container.tail()}"


@pytest.mark.parametrize(("pod", "container"), [("gateway", "gateway"), ("triton", "triton"), ("triton", "worker")])
def test_a_container_is_nobody_and_can_write_only_to_its_volumes(demo, pod, container):
    status, said = getattr(demo, pod).containers[container].execute(["python3", "-c", DENIED], 60)
    assert (status, said.split()) == (0, ["1000", "1000", "0", "0", "1", "2", "30"])  # 30: EROFS


def test_the_first_video(demo, tmp_path):
    job = finished(demo.gateway, submitted(demo.gateway), 300)
    assert job["status"] == "completed", f"{job}\n{demo.triton.containers['worker'].tail()}"
    content = httpx.get(f"http://{demo.gateway.address}:3000/v1/videos/{job['id']}/content", timeout=60)
    (tmp_path / "video.mp4").write_bytes(content.content)
    from imageio_ffmpeg import count_frames_and_secs

    assert count_frames_and_secs(str(tmp_path / "video.mp4"))[0] == 17


def test_no_container_was_killed_for_memory_and_no_volume_is_over_its_limit(demo):
    for pod in (demo.postgres, demo.gateway, demo.triton):
        assert pod.volumes.over_their_limit() == {}
        for container in pod.running():
            events = json.loads(builds.run(*pod.runtime, "events", "--stats", container.id))["data"]["memory"]
            assert events["usage"]["failcnt"] == 0, (container.id, events["usage"])


def test_a_drained_pod_ends_its_job_and_leaves_within_the_grace_period(demo):
    job = submitted(demo.gateway, steps=100)
    while httpx.get(f"http://{demo.gateway.address}:3000/v1/videos/{job}", timeout=30).json()["status"] == "queued":
        time.sleep(0.2)
    took = demo.triton.stop()
    assert {c.process.returncode for c in demo.triton.containers.values()} <= {0, 143}
    assert finished(demo.gateway, job, 5)["status"] == "completed"
    assert took < 300
    demo.gateway.stop()
    demo.postgres.stop()


def helps(spec: dict) -> list[list[str]]:
    """For every command of a container one that imports what it does and ends. Triton itself is of the base, which is not here."""
    handlers = [spec.get("lifecycle", {}).get("preStop", {}), *[spec[key] for key in spec if key.endswith("Probe")]]
    commands = [spec.get("command", []), *[handler["exec"]["command"] for handler in handlers if "exec" in handler]]
    found = [[*command[:3], "--help"] for command in commands if command[:2] == ["python3", "-m"]]
    found += [[*command[:2], "--help"] for command in commands if command[:1] == ["hf"]]
    return [["python3", "-c", "import service.worker.worker"] if "service.worker" in each else each for each in found]


@pytest.mark.parametrize("overlay", ["one-gpu", "eight-gpu", "one-gpu/engines"])
def test_every_command_of_the_gpu_manifests_starts_in_its_container(node, overlay):
    secrets = [{"kind": "Secret", "metadata": {"name": name}, "data": dict.fromkeys(keys, "eA==")}
               for name, keys in (OPERATORS_SECRETS | {"wan-database-app": {"uri"}}).items()]  # fmt: skip
    started = 0
    for workload in of_kind(overlay, "Deployment", "Job"):
        pod = node.pod(workload, render(overlay) + secrets)
        pod.write_hosts()
        for spec in [*pod.spec.get("initContainers", []), *pod.spec["containers"]]:
            for number, command in enumerate(helps(spec)):
                container = pod.begin(spec | {"command": command, "args": [], "name": f"{spec['name']}-{number}"})
                assert container.process.wait(300) == 0, f"{command}: {container.tail()}"
                started += 1
    assert started >= 2
