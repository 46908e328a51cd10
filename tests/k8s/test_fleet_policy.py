"""What a large cluster needs of the manifests: small roll-outs, monitoring that is picked up, nodes that can be drained."""

import re
import shutil

import jsonschema
import pytest

from tests.k8s.rendering import (
    GPU_SERVING,
    K8S,
    SERVING,
    config,
    container,
    containers,
    named,
    of_kind,
    pod_spec,
    published_crds,
    render,
)


@pytest.mark.parametrize("overlay", GPU_SERVING)
def test_a_setting_of_the_gateway_rolls_no_gpu_pod(overlay, tmp_path):
    shutil.copytree(K8S, tmp_path / "k8s")
    settings = tmp_path / "k8s/base/gateway.env"
    settings.write_text(settings.read_text().replace("WAN_MAX_QUEUED=5000", "WAN_MAX_QUEUED=50"))
    changed = {
        item["metadata"]["name"]: item
        for item in render(str(tmp_path / "k8s/overlays" / overlay))
        if item["kind"] == "Deployment"
    }
    assert changed["wan-triton"] == named(overlay, "Deployment", "wan-triton")
    assert changed["wan-gateway"] != named(overlay, "Deployment", "wan-gateway")


@pytest.mark.parametrize("overlay", GPU_SERVING)
def test_monitoring_bears_the_label_that_the_default_stack_selects(overlay):
    monitoring = of_kind(overlay, "PodMonitor", "PrometheusRule")
    assert len(monitoring) == 3
    assert {item["metadata"]["labels"]["release"] for item in monitoring} == {"kube-prometheus-stack"}


@pytest.mark.parametrize("overlay", SERVING)
def test_dns_may_be_anywhere(overlay):
    (rule,) = next(i["spec"]["egress"] for i in of_kind(overlay, "NetworkPolicy") if i["metadata"]["name"] == "wan-dns")
    assert set(rule) == {"ports"}
    assert {(port["port"], port["protocol"]) for port in rule["ports"]} == {(53, "UDP"), (53, "TCP")}


@pytest.mark.parametrize("overlay", ["eight-gpu", "cpu-demo"])
def test_a_database_in_the_cluster_admits_only_its_clients(overlay):
    label = {"eight-gpu": {"cnpg.io/cluster": "wan-database"}, "cpu-demo": {"app.kubernetes.io/name": "wan-postgres"}}
    policies = [item["spec"] for item in of_kind(overlay, "NetworkPolicy")]
    (policy,) = (spec for spec in policies if spec["podSelector"].get("matchLabels") == label[overlay])
    assert policy["policyTypes"] == ["Ingress"]
    assert all(source for rule in policy["ingress"] for source in rule["from"])
    assert all(port["port"] for rule in policy["ingress"] for port in rule["ports"])


@pytest.mark.parametrize("overlay", GPU_SERVING)
def test_nodes_can_be_drained_and_removed(overlay):
    """Karpenter drains no pod that tolerates its taint; the cluster autoscaler keeps a node whose emptyDirs it may not lose."""
    for name in ("wan-triton", "wan-gateway"):
        workload = named(overlay, "Deployment", name)
        keys = {toleration["key"] for toleration in pod_spec(workload).get("tolerations", [])}
        assert not [key for key in keys if key.startswith("karpenter.sh/")]
        annotations = workload["spec"]["template"]["metadata"]["annotations"]
        given = annotations["cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"].split(",")
        assert {v["name"] for v in pod_spec(workload)["volumes"] if "emptyDir" in v} <= set(given)


@pytest.mark.parametrize("overlay", SERVING)
def test_the_api_accepts_no_webhook_that_the_network_drops(overlay):
    policies = {item["metadata"]["name"]: item["spec"] for item in of_kind(overlay, "NetworkPolicy")}
    allowed = {str(port["port"]) for rule in policies["wan-webhooks"]["egress"] for port in rule["ports"]}
    assert set(config(overlay, "wan-gateway-settings")["WAN_WEBHOOK_PORTS"].split(",")) == allowed


@pytest.mark.parametrize("overlay", GPU_SERVING)
def test_nobody_gets_in_without_a_key(overlay):
    gateway = container(overlay, "Deployment/wan-gateway", "gateway")
    path = {variable["name"]: variable.get("value") for variable in gateway["env"]}["WAN_API_KEYS_FILE"]
    mount = next(mount for mount in gateway["volumeMounts"] if path.startswith(mount["mountPath"] + "/"))
    volume = next(
        v for v in pod_spec(named(overlay, "Deployment", "wan-gateway"))["volumes"] if v["name"] == mount["name"]
    )
    assert volume["secret"]["secretName"] == "wan-api-keys"
    assert "optional" not in volume["secret"]
    assert [item["path"] for item in volume["secret"]["items"]] == [path.rsplit("/", 1)[1]]


@pytest.mark.parametrize("overlay", GPU_SERVING)
def test_no_secret_is_in_a_tracked_file(overlay):
    assert not of_kind(overlay, "Secret")


@pytest.mark.parametrize("overlay", GPU_SERVING)
def test_an_eviction_is_allowed_because_it_loses_nothing(overlay):
    annotations = named(overlay, "Deployment", "wan-triton")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "true"
    assert "preStop" in container(overlay, "Deployment/wan-triton", "worker")["lifecycle"]


def test_an_accepted_job_is_on_two_database_nodes_and_in_a_backup():
    (cluster,) = of_kind("eight-gpu", "Cluster")
    (nightly,) = of_kind("eight-gpu", "ScheduledBackup")
    assert cluster["spec"]["instances"] >= 3
    assert cluster["spec"]["postgresql"]["synchronous"]["number"] >= 1
    assert cluster["spec"]["backup"]["barmanObjectStore"]["destinationPath"].startswith("s3://")
    assert nightly["spec"]["cluster"]["name"] == cluster["metadata"]["name"]
    assert len(nightly["spec"]["schedule"].split()) == 6, "CloudNativePG's schedule begins with seconds"


def with_component(overlay: str, name: str, folder) -> list[dict]:
    """An overlay that takes one more component."""
    shutil.copytree(K8S, folder / "k8s")
    path = folder / "k8s/overlays" / overlay / "kustomization.yaml"
    last = "- ../../components/monitoring\n"
    path.write_text(path.read_text().replace(last, f"{last}- ../../components/{name}\n"))
    return render(str(folder / "k8s/overlays" / overlay))


def test_a_restored_database_begins_with_the_backup_and_leaves_it_as_it_is(tmp_path):
    cluster = next(i for i in with_component("eight-gpu", "database-restore", tmp_path) if i["kind"] == "Cluster")
    jsonschema.validate(cluster["spec"], published_crds()[cluster["apiVersion"], "Cluster"])
    spec = cluster["spec"]
    (before,) = spec["externalClusters"]
    assert spec["bootstrap"]["recovery"]["source"] == before["name"]
    assert before["barmanObjectStore"]["destinationPath"] == spec["backup"]["barmanObjectStore"]["destinationPath"]
    assert before["barmanObjectStore"]["serverName"] != spec["backup"]["barmanObjectStore"]["serverName"]


def test_workload_identity_needs_no_keys(tmp_path):
    items = with_component("one-gpu", "workload-identity-eks", tmp_path)
    accounts = {i["metadata"]["name"]: i["metadata"] for i in items if i["kind"] == "ServiceAccount"}
    assert all("eks.amazonaws.com/role-arn" in accounts[name]["annotations"] for name in ("wan-gateway", "wan-triton"))
    policy = next(
        i["spec"] for i in items if i["kind"] == "NetworkPolicy" and i["metadata"]["name"] == "wan-pod-identity"
    )
    assert policy["egress"] == [
        {"to": [{"ipBlock": {"cidr": "169.254.170.23/32"}}], "ports": [{"port": 80, "protocol": "TCP"}]}
    ]
    for each in containers("one-gpu"):
        keys = [source["secretRef"] for source in each.spec.get("envFrom", []) if "secretRef" in source]
        assert all(reference["optional"] for reference in keys), each


def test_what_a_cluster_calls_its_own_is_said_once(tmp_path):
    shutil.copytree(K8S, tmp_path / "k8s")
    names = tmp_path / "k8s/components/monitoring/monitoring.env"
    names.write_text("RELEASE=prom\nRUNBOOK=https://wiki.example.org/wan\n")
    items = render(str(tmp_path / "k8s/overlays/one-gpu"))
    monitoring = [item for item in items if item["kind"] in ("PodMonitor", "PrometheusRule")]
    assert {item["metadata"]["labels"]["release"] for item in monitoring} == {"prom"}
    (rules,) = (item["spec"]["groups"] for item in monitoring if item["kind"] == "PrometheusRule")
    alerts = [rule for group in rules for rule in group["rules"] if "alert" in rule]
    assert len(alerts) > 15
    for rule in alerts:
        assert rule["annotations"]["runbook_url"] == f"https://wiki.example.org/wan#{rule['alert'].lower()}"


def test_an_image_may_be_named_by_its_digest(tmp_path):
    shutil.copytree(K8S, tmp_path / "k8s")
    path = tmp_path / "k8s/overlays/one-gpu/kustomization.yaml"
    path.write_text(path.read_text().replace("newTag: 0.1.0", f"digest: sha256:{'a' * 64}"))
    for item in render(str(tmp_path / "k8s/overlays/one-gpu")):
        if item["kind"] == "Deployment":
            pod = item["spec"]["template"]["spec"]
            assert all(
                c["image"].endswith(f"@sha256:{'a' * 64}") for c in pod["containers"] + pod.get("initContainers", [])
            )


@pytest.mark.parametrize("overlay", ["one-gpu/engines", "eight-gpu/engines"])
def test_weights_are_those_of_one_commit(overlay):
    assert re.fullmatch(r"[0-9a-f]{40}", config(overlay, "wan-weights")["WEIGHTS_REVISION"])


def test_the_image_takes_tensorrt_from_its_base():
    text = (K8S / "images/server.Dockerfile").read_text()
    assert re.search(r"pip install --no-deps \"tensorrt-cu\S+-bindings==", text)
