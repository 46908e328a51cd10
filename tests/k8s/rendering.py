"""What the manifests render to: every overlay through the kustomize that ships in kubectl."""

import functools
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(path.parent.relative_to(K8S / "overlays").as_posix() for path in (K8S / "overlays").rglob("kustomization.yaml")
                  if yaml.safe_load(path.read_text())["kind"] == "Kustomization")  # fmt: skip
SERVING = ("one-gpu", "eight-gpu", "spot", "cpu-demo")
GPU_SERVING = ("one-gpu", "eight-gpu", "spot")
WORKLOADS = ("Deployment", "StatefulSet", "Job")
# Made by the operator, as k8s/README.md says, never written to a tracked file.
OPERATORS_SECRETS = {
    "wan-database": {"url"},
    "wan-api-keys": {"keys.json"},
    "wan-backup": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
    "wan-storage": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
}


@functools.cache
def render(overlay: str) -> list[dict]:
    """All objects of an overlay."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl installed (https://kubernetes.io/docs/tasks/tools)")
    command = [kubectl, "kustomize", str(K8S / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@functools.cache
def published_crds() -> dict[tuple[str, str], dict]:
    """(apiVersion, kind) -> JSON schema of the spec, closed: what is not in it is refused."""
    folder = Path(os.environ.get("WAN_CRDS", ROOT.parent / "shared/crds"))
    if not folder.is_dir():
        pytest.skip("no CRDs: set WAN_CRDS to a folder with those of KEDA, the Prometheus operator and CloudNativePG")
    found = {}
    for path in folder.glob("*.yaml"):
        for crd in yaml.safe_load_all(path.read_text()):
            if crd and crd.get("kind") == "CustomResourceDefinition":
                spec = crd["spec"]
                for version in spec["versions"]:
                    schema = _closed(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
                    found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return found


def _closed(schema: dict) -> dict:
    """A structural schema of Kubernetes as a strict JSON schema."""
    made = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes")}
    if schema.get("x-kubernetes-int-or-string"):
        made = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    if "properties" in schema:
        made["properties"] = {name: _closed(each) for name, each in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            made[key] = _closed(schema[key])
    return made


def of_kind(overlay: str, *kinds: str) -> list[dict]:
    return [item for item in render(overlay) if item["kind"] in kinds]


def named(overlay: str, kind: str, name: str) -> dict:
    found = [item for item in of_kind(overlay, kind) if item["metadata"]["name"] == name]
    assert len(found) == 1, f"{overlay} has {len(found)} objects {kind}/{name}"
    return found[0]


def pod_spec(workload: dict) -> dict:
    return workload["spec"]["template"]["spec"]


@dataclass(frozen=True)
class Container:
    """A container of a rendered pod. `kind`: main, sidecar (runs beside the main ones) or init (ends before them)."""

    workload: str
    kind: str
    spec: dict

    def __str__(self) -> str:
        return f"{self.workload}/{self.spec['name']}"


def containers(overlay: str) -> list[Container]:
    found = []
    for workload in of_kind(overlay, *WORKLOADS):
        pod, name = pod_spec(workload), f"{workload['kind']}/{workload['metadata']['name']}"
        found += [Container(name, "main", spec) for spec in pod["containers"]]
        for spec in pod.get("initContainers", []):
            found.append(Container(name, "sidecar" if spec.get("restartPolicy") == "Always" else "init", spec))
    return found


def container(overlay: str, workload: str, name: str) -> dict:
    return next(c.spec for c in containers(overlay) if c.workload == workload and c.spec["name"] == name)


def config(overlay: str, prefix: str) -> dict[str, str]:
    """The data of the one ConfigMap whose name begins with `prefix` (kustomize appends a hash)."""
    found = [item for item in of_kind(overlay, "ConfigMap") if item["metadata"]["name"].startswith(prefix)]
    assert len(found) == 1, f"{overlay} has {len(found)} ConfigMaps {prefix}*"
    return found[0]["data"]
