"""The small kubelet of the images check: what it makes of a manifest before anything starts."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.k8s.node.containers import SECCOMP, Place, environment, system_calls
from tests.k8s.node.images import Image
from tests.k8s.node.volumes import quantity
from tests.k8s.rendering import config, container

IMAGE = Image("server-cpu", Path("/"), ["python3"], {"PYTHONPATH": "/app", "HOME": "/root"}, "/app", "1000:1000")


def test_quantities():
    assert [quantity(text) for text in ("512Mi", "2", "100m", "1.5Gi")] == [512 * 2**20, 2, 0.1, 1.5 * 2**30]


def test_a_containers_environment_is_the_images_then_the_config_maps_then_its_own():
    settings, artifacts = config("cpu-demo", "wan-settings"), config("cpu-demo", "wan-artifacts")
    data = {"wan-settings": settings, "wan-artifacts": artifacts}

    def read(kind: str, name: str) -> dict[str, bytes]:
        return {key: value.encode() for key, value in data[name.rpartition("-")[0]].items()}

    place = Place({}, {"metadata.name": "pod-1", "spec.nodeName": "node-1"}, SimpleNamespace(data=read), "", {})
    found = environment(container("cpu-demo", "Deployment/wan-triton", "worker"), IMAGE, place)
    assert found["PYTHONPATH"] == "/app"
    assert found["HOME"] == "/tmp"
    assert found["WAN_RUN_DIR"] == settings["WAN_RUN_DIR"]
    assert (found["WAN_WORKER_ID"], found["WAN_NODE"]) == ("pod-1", "node-1")


@pytest.mark.skipif(
    not SECCOMP.exists(), reason="no default profile of system calls: apt-get install golang-github-containers-common"
)
def test_the_default_system_calls_let_programs_run_and_do_not_let_them_mount():
    allowed = {
        name for rule in system_calls()["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]
    }
    assert {"execve", "mmap", "clone", "futex"} <= allowed
    assert not {"mount", "reboot", "init_module", "bpf", "unshare", "clone3"} & allowed
