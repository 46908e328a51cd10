"""Components that no overlay takes by itself: what they add to one-gpu, and that it fits what is there."""

import functools
import re
import shutil

import jsonschema
import kubernetes_validate
import pytest
import yaml

from service.api.app import create_app
from service.api.guard import WITH_FILES
from service.launcher import local_copy
from service.settings import Settings
from tests.k8s.rendering import K8S, OPERATORS_SECRETS, container, named, pod_spec, published_crds, render
from tests.k8s.test_render import OPERATORS as KNOWN_OPERATORS
from tests.k8s.test_render import VERSIONS

TAKEN = ("kueue", "gpu-claims", "external-secrets", "gateway-api", "node-local-weights")
INSTEAD = ("gpu-claims",)
OPERATORS = (*KNOWN_OPERATORS, "kueue.x-k8s.io/", "external-secrets.io/", "gateway.networking.k8s.io/")
SINCE = {"gpu-claims": "1.34"}


def with_component(name: str, folder, overlay: str) -> list[dict]:
    """An overlay that takes one more component, or another one than `gpu-nodes`."""
    shutil.copytree(K8S, folder / "k8s")
    path = folder / "k8s/overlays" / overlay / "kustomization.yaml"
    (line,) = (line for line in path.read_text().splitlines() if line.endswith("components/gpu-nodes"))
    added = line.replace("gpu-nodes", name)
    path.write_text(path.read_text().replace(line, added if name in INSTEAD else f"{line}\n{added}"))
    return render(str(folder / "k8s/overlays" / overlay))


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    return functools.cache(lambda name, overlay="one-gpu": with_component(name, tmp_path_factory.mktemp(name), overlay))


def only(items: list[dict], kind: str, name: str | None = None) -> dict:
    (found,) = [i for i in items if i["kind"] == kind and name in (None, i["metadata"]["name"])]
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", TAKEN)
def test_what_a_component_changes_fits_the_kubernetes_schema(taken, name, version):
    if version < SINCE.get(name, VERSIONS[0]):
        pytest.skip(f"{name} needs Kubernetes {SINCE[name]}")
    for item in changed(taken, name):
        if not item["apiVersion"].startswith(OPERATORS):
            assert kubernetes_validate.validate(item, version, strict=True) == version


def changed(taken, name: str) -> list[dict]:
    items = [item for item in taken(name) if item not in render("one-gpu")]
    assert items
    return items


@pytest.mark.parametrize("name", TAKEN)
def test_its_custom_resources_are_complete_and_ours(taken, name):
    for item in changed(taken, name):
        assert "set by" not in yaml.safe_dump(item), "a value that an .env file says was not put in"
        if item["apiVersion"].startswith(OPERATORS):
            assert set(item) == {"apiVersion", "kind", "metadata", "spec"}
            assert item["metadata"]["namespace"] == "wan"


@pytest.mark.parametrize("name", TAKEN)
def test_its_custom_resources_fit_their_published_fields(taken, name):
    for item in changed(taken, name):
        key = (item["apiVersion"], item["kind"])
        if item["apiVersion"].startswith(OPERATORS):
            if key not in published_crds():
                pytest.skip(f"no CRD of {key} in the folder of WAN_CRDS")
            jsonschema.Draft202012Validator(published_crds()[key]).validate(item["spec"])


@pytest.mark.parametrize("overlay", ["one-gpu", "one-gpu/engines"])
def test_every_gpu_workload_waits_in_a_queue_that_has_its_resources(taken, overlay):
    items = taken("kueue", overlay)
    kind = "Job" if "engines" in overlay else "Deployment"
    waiting = [i for i in items if "kueue.x-k8s.io/queue-name" in i["metadata"].get("labels", {})]
    assert [i["kind"] for i in waiting] == [kind]
    assert (
        waiting[0]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == only(items, "LocalQueue")["metadata"]["name"]
    )
    flavor, queue = yaml.safe_load_all((K8S / "components/kueue/cluster-queue.yaml").read_text())
    assert only(items, "LocalQueue")["spec"]["clusterQueue"] == queue["metadata"]["name"]
    (group,) = queue["spec"]["resourceGroups"]
    (quota,) = group["flavors"]
    assert quota["name"] == flavor["metadata"]["name"]
    pod = pod_spec(waiting[0])
    wanted = {name for c in pod["containers"] + pod.get("initContainers", []) for name in c["resources"]["requests"]}
    assert wanted <= set(group["coveredResources"]) == {r["name"] for r in quota["resources"]}
    assert flavor["spec"]["nodeLabels"].items() <= pod["nodeSelector"].items()


@pytest.mark.parametrize("overlay", ["one-gpu", "one-gpu/engines"])
def test_a_pod_claims_one_gpu_of_the_capability_of_its_engines_and_counts_none(taken, overlay):
    items = taken("gpu-claims", overlay)
    template = only(items, "ResourceClaimTemplate")
    workload = only(items, "Job") if "engines" in overlay else only(items, "Deployment", "wan-triton")
    pod = pod_spec(workload)
    assert pod["resourceClaims"] == [{"name": "gpu", "resourceClaimTemplateName": template["metadata"]["name"]}]
    assert "nodeSelector" not in pod
    assert "nvidia.com/gpu" not in yaml.safe_dump(
        [c["resources"] for c in pod["containers"] + pod.get("initContainers", [])]
    )
    claiming = [c["name"] for c in pod["containers"] + pod.get("initContainers", []) if "claims" in c["resources"]]
    assert claiming == (["export"] if "engines" in overlay else ["triton"])
    (request,) = template["spec"]["spec"]["devices"]["requests"]
    (selector,) = request["exactly"]["selectors"]
    labels = pod_spec(named("one-gpu", "Deployment", "wan-triton"))["nodeSelector"]
    wanted = f'semver("{labels["nvidia.com/gpu.compute.major"]}.{labels["nvidia.com/gpu.compute.minor"]}.0")'
    assert wanted in selector["cel"]["expression"]


def test_every_secret_of_the_operator_can_come_from_the_vault(taken):
    items = [i for i in taken("external-secrets") if i["kind"] == "ExternalSecret"]
    made = {i["spec"]["target"]["name"]: i["spec"] for i in items}
    read = {source["secret"]["name"] for item in render("one-gpu") if item["kind"] == "Deployment"
            for volume in pod_spec(item)["volumes"] for source in volume.get("projected", {}).get("sources", [])}  # fmt: skip
    assert set(made) == {*read, "wan-api-keys", "wan-storage"}
    for name, spec in made.items():
        assert spec["secretStoreRef"] == {"kind": "ClusterSecretStore", "name": "wan"}
        if "data" in spec:
            assert {entry["secretKey"] for entry in spec["data"]} == OPERATORS_SECRETS[name]


def test_callers_reach_every_route_over_tls_and_metrics_stay_inside(taken):
    items = taken("gateway-api")
    gateway, route, redirect = (
        only(items, "Gateway"),
        only(items, "HTTPRoute", "wan"),
        only(items, "HTTPRoute", "wan-to-tls"),
    )
    listeners = {entry["name"]: entry for entry in gateway["spec"]["listeners"]}
    assert listeners["https"]["tls"]["mode"] == "Terminate"
    assert {entry["hostname"] for entry in listeners.values()} == {
        *route["spec"]["hostnames"],
        *redirect["spec"]["hostnames"],
    }
    assert [ref["sectionName"] for ref in route["spec"]["parentRefs"]] == ["https"]
    assert [ref["sectionName"] for ref in redirect["spec"]["parentRefs"]] == ["http"]
    (rule,) = redirect["spec"]["rules"]
    assert rule["filters"][0]["requestRedirect"] == {"scheme": "https", "statusCode": 301}
    (rule,) = route["spec"]["rules"]
    (backend,) = rule["backendRefs"]
    service = only(items, "Service")
    assert (backend["name"], backend["port"]) == (service["metadata"]["name"], service["spec"]["ports"][0]["port"])

    def routed(path):
        return any(path == m["path"]["value"] if m["path"]["type"] == "Exact" else
                   f"{path}/".startswith(m["path"]["value"] + "/") for m in rule["matches"])  # fmt: skip

    paths = {re.sub(r"\{.*?\}", "x", route) for route in create_app(Settings()).openapi()["paths"]} | WITH_FILES
    assert len(paths) > 20
    assert [path for path in sorted(paths | {"/", "/web/page.js"}) if not routed(path)] == []
    assert [path for path in ("/metrics", "/readyz", "/livez", "/healthz", "/v1x") if routed(path)] == []


def test_the_proxy_is_admitted_to_the_gateway_and_to_nothing_else(taken):
    policy = only(taken("gateway-api"), "NetworkPolicy", "wan-proxy")["spec"]
    assert policy["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "wan-gateway"}}
    (rule,) = policy["ingress"]
    assert rule["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "envoy-gateway-system"}}}
    ]
    assert [port["port"] for port in rule["ports"]] == ["http"]


def test_triton_reads_what_the_init_container_copied_under_the_same_path(taken, monkeypatch):
    pod = pod_spec(only(taken("node-local-weights"), "Deployment", "wan-triton"))
    first, triton = pod["initContainers"][:2]
    assert (first["name"], triton["name"]) == ("copy-weights", "triton")
    disk = {mount["mountPath"]: mount for mount in first["volumeMounts"]}
    seen = {mount["mountPath"]: mount for mount in triton["volumeMounts"]}
    assert disk["/repository"]["name"] == seen["/repository"]["name"] == "node-disk"
    assert seen["/repository"]["readOnly"] is disk["/source"]["readOnly"] is True
    before = {m["mountPath"]: m for m in container("one-gpu", "Deployment/wan-triton", "triton")["volumeMounts"]}
    assert before["/repository"]["name"] == disk["/source"]["name"] == seen["/compiled"]["name"] == "repository"
    assert first["securityContext"] == triton["securityContext"]
    calls = []
    monkeypatch.setattr(local_copy, "copy", lambda *paths: calls.append(paths) or (0, 0))
    command = [word.replace("$(MODEL_REPOSITORY)", "/repository/0.1.0") for word in first["command"]]
    assert command[:3] == ["python3", "-m", "service.launcher.local_copy"]
    assert local_copy.main(command[3:]) == 0
    assert [str(path) for path in calls[0]] == ["/source/0.1.0", "/repository/0.1.0"]


def test_only_the_volume_of_the_node_loosens_the_namespace(taken):
    for name in TAKEN:
        labels = only(taken(name), "Namespace")["metadata"]["labels"]
        wanted = "privileged" if name == "node-local-weights" else "restricted"
        assert labels["pod-security.kubernetes.io/enforce"] == wanted
        assert labels["pod-security.kubernetes.io/warn"] == "restricted"
