"""What a large cluster needs of the manifests: small roll-outs, monitoring that is picked up, nodes that can be drained."""

import shutil

import pytest

from tests.k8s.rendering import GPU_SERVING, K8S, SERVING, named, of_kind, pod_spec, render


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
