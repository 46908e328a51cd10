"""Every overlay renders, and every object is valid: strictly, for three minor versions of Kubernetes."""

import functools

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.k8s.rendering import K8S, OVERLAYS, SERVING, WORKLOADS, of_kind, pod_spec, render

# The library reads its two megabytes of definitions again for every object.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)
VERSIONS = ("1.33", "1.34", "1.35")
CRDS = yaml.safe_load((K8S.parent / "tests/k8s/crds.yaml").read_text())


def test_all_overlays_are_known():
    assert set(OVERLAYS) == {*SERVING, "one-gpu/engines", "eight-gpu/engines"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_fits_the_kubernetes_schema(overlay, version):
    for item in render(overlay):
        if item["kind"] not in CRDS:
            assert kubernetes_validate.validate(item, version, strict=True) == version


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_custom_resources_fit_their_published_fields(overlay):
    for item in render(overlay):
        if schema := CRDS.get(item["kind"]):
            assert item["apiVersion"] == schema["apiVersion"]
            assert set(item) == {"apiVersion", "kind", "metadata", "spec"}
            jsonschema.Draft202012Validator(schema["spec"]).validate(item["spec"])


def test_a_misspelt_field_is_refused():
    deployment = next(item for item in render("one-gpu") if item["kind"] == "Deployment")
    broken = deployment | {"spec": deployment["spec"] | {"replica": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[0], strict=True)
    scaled = next(item for item in render("one-gpu") if item["kind"] == "ScaledObject")["spec"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(scaled | {"minReplicas": 1}, CRDS["ScaledObject"]["spec"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_names_are_unique_and_in_our_namespace(overlay):
    cluster_wide = ("Namespace", "PriorityClass")
    seen = set()
    for item in render(overlay):
        key = (item["kind"], item["metadata"]["name"])
        assert key not in seen
        seen.add(key)
        assert item["kind"] in cluster_wide or item["metadata"]["namespace"] == "wan", key


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_patch_names_its_effect(overlay):
    for path in (K8S / "overlays" / overlay).glob("*.yaml"):
        if path.name != "kustomization.yaml":
            assert len(path.stem.split("-")) > 1, f"{path.name} does not say what it does"
            assert "patch" not in path.stem


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_their_pods(overlay):
    pods = [item["spec"]["template"]["metadata"]["labels"] for item in of_kind(overlay, *WORKLOADS)]
    for item in render(overlay):
        spec = item.get("spec", {})
        selectors = {
            "Service": spec.get("selector"),
            "PodDisruptionBudget": spec.get("selector", {}).get("matchLabels"),
            "PodMonitor": spec.get("selector", {}).get("matchLabels"),
        }
        if selector := selectors.get(item["kind"]):
            assert any(selector.items() <= labels.items() for labels in pods), (item["kind"], item["metadata"]["name"])


@pytest.mark.parametrize("overlay", SERVING)
def test_named_ports_exist(overlay):
    ports = {}
    for workload in of_kind(overlay, *WORKLOADS):
        pod = pod_spec(workload)
        names = {p["name"] for c in pod["containers"] + pod.get("initContainers", []) for p in c.get("ports", [])}
        ports[workload["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]] = names
    for item in of_kind(overlay, "PodMonitor"):
        name = item["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"]
        assert {e["port"] for e in item["spec"]["podMetricsEndpoints"]} <= ports[name]
    for item in of_kind(overlay, "Service"):
        assert {p["targetPort"] for p in item["spec"]["ports"]} <= ports[
            item["spec"]["selector"]["app.kubernetes.io/name"]
        ]
    for item in of_kind(overlay, "NetworkPolicy"):
        if name := item["spec"]["podSelector"].get("matchLabels", {}).get("app.kubernetes.io/name"):
            wanted = {p["port"] for rule in item["spec"].get("ingress", []) for p in rule.get("ports", [])}
            assert wanted <= ports[name]
