"""The component that sends traces to a collector, on an overlay that has no tracing of its own."""

import os
import shutil
import subprocess
from urllib.parse import urlsplit

import pytest
import yaml

from service.settings import Settings
from tests.k8s.rendering import K8S


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl installed (https://kubernetes.io/docs/tasks/tools)")
    folder = tmp_path_factory.mktemp("traced")
    paths = {name: os.path.relpath(K8S / path, folder.resolve())
             for name, path in (("resources", "overlays/one-gpu"), ("components", "components/tracing"))}  # fmt: skip
    content = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "namespace": "wan"}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content | {name: [path] for name, path in paths.items()}))
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def test_gateway_worker_and_triton_send_their_spans_where_the_network_lets_them(rendered):
    named = {(each["kind"], each["metadata"]["name"]): each for each in rendered}
    (settings,) = (name for kind, name in named if kind == "ConfigMap" and name.startswith("wan-settings"))
    endpoint = named["ConfigMap", settings]["data"]["WAN_OTLP_ENDPOINT"]
    assert Settings(otlp_endpoint=endpoint).otlp_endpoint == endpoint
    for deployment, container in (("wan-gateway", "gateway"), ("wan-triton", "triton"), ("wan-triton", "worker")):
        pod = named["Deployment", deployment]["spec"]["template"]["spec"]
        (found,) = (each for each in pod["containers"] + pod.get("initContainers", []) if each["name"] == container)
        assert {"configMapRef": {"name": settings}} in found["envFrom"]
    (rule,) = named["NetworkPolicy", "wan-tracing"]["spec"]["egress"]
    assert rule["ports"][0]["port"] == urlsplit(endpoint).port
    namespace = rule["to"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert urlsplit(endpoint).hostname.split(".")[1] == namespace
