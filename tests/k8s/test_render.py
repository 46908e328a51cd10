"""Every overlay renders, and every object is valid: strictly, for three minor versions of Kubernetes."""

import functools

import jsonschema
import kubernetes_validate
import pytest

from tests.k8s.rendering import K8S, OVERLAYS, SERVING, WORKLOADS, of_kind, pod_spec, published_crds, render

# The library reads its two megabytes of definitions again for every object.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)
VERSIONS = ("1.33", "1.34", "1.35")
OPERATORS = ("keda.sh/", "monitoring.coreos.com/", "postgresql.cnpg.io/")


def test_all_overlays_are_known():
    assert set(OVERLAYS) == {*SERVING, "pool-14b", "one-gpu/engines", "eight-gpu/engines"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_fits_the_kubernetes_schema(overlay, version):
    for item in render(overlay):
        if not item["apiVersion"].startswith(OPERATORS):
            assert kubernetes_validate.validate(item, version, strict=True) == version


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_custom_resources_fit_their_published_fields(overlay):
    for item in render(overlay):
        if item["apiVersion"].startswith(OPERATORS):
            assert set(item) == {"apiVersion", "kind", "metadata", "spec"}
            schema = published_crds()[item["apiVersion"], item["kind"]]
            jsonschema.Draft202012Validator(schema).validate(item["spec"])


def test_a_misspelt_field_is_refused():
    deployment = next(item for item in render("one-gpu") if item["kind"] == "Deployment")
    broken = deployment | {"spec": deployment["spec"] | {"replica": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[0], strict=True)


@pytest.mark.parametrize(
    ("overlay", "kind", "field"),
    [
        ("one-gpu", "ScaledObject", "minReplicas"),
        ("eight-gpu", "Cluster", "replicas"),
        ("one-gpu", "PodMonitor", "port"),
    ],
)
def test_a_misspelt_field_of_an_operator_is_refused(overlay, kind, field):
    item = of_kind(overlay, kind)[0]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(item["spec"] | {field: 1}, published_crds()[item["apiVersion"], kind])


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
