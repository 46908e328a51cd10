"""A second pool: its own pods, prices and autoscaler beside the first, and nothing of the gateway."""

from tests.k8s.rendering import config, named, of_kind, pod_spec, render

NAMES = {"one-gpu": "wan-triton", "pool-14b": "wan-triton-14b"}


def test_a_pool_is_added_without_touching_the_gateway():
    kinds = {(item["kind"], item["metadata"]["name"]) for item in render("pool-14b")}
    assert not {name for kind, name in kinds if kind not in ("ConfigMap",) and not name.endswith("-14b")}
    assert {kind for kind, _ in kinds} == {"ConfigMap", "Deployment", "PodDisruptionBudget", "ScaledObject"}


def test_no_selector_of_one_pool_finds_pods_of_the_other():
    """Two budgets on one pod block its eviction; two Deployments would fight for it."""
    for overlay, other in (("one-gpu", "pool-14b"), ("pool-14b", "one-gpu")):
        labels = named(other, "Deployment", NAMES[other])["spec"]["template"]["metadata"]["labels"]
        for kind in ("Deployment", "PodDisruptionBudget"):
            selector = named(overlay, kind, NAMES[overlay])["spec"]["selector"]["matchLabels"]
            assert not selector.items() <= labels.items()
        spread = pod_spec(named(overlay, "Deployment", NAMES[overlay]))["topologySpreadConstraints"]
        assert not spread[0]["labelSelector"]["matchLabels"].items() <= labels.items()


def test_the_policies_of_the_deployment_hold_for_every_pool():
    labels = named("pool-14b", "Deployment", "wan-triton-14b")["spec"]["template"]["metadata"]["labels"]
    policies = {item["metadata"]["name"]: item["spec"]["podSelector"] for item in of_kind("one-gpu", "NetworkPolicy")}
    for name in ("wan-default-deny", "wan-dns", "wan-triton"):
        assert policies[name]["matchLabels"].items() <= labels.items()


def test_every_pool_scales_on_the_work_of_its_own_model():
    for overlay, model in (("one-gpu", "wan"), ("pool-14b", "wan-14b")):
        assert config(overlay, "wan-settings")["WAN_MODEL_NAME"] == model
        (scaled,) = of_kind(overlay, "ScaledObject")
        assert scaled["spec"]["scaleTargetRef"]["name"] == NAMES[overlay]
        triggers = {t["name"]: t["metadata"] for t in scaled["spec"]["triggers"]}
        assert triggers["demand"]["query"] == f'max(wan_demand_slots{{namespace="wan",model="{model}"}})'
        busy = f'wan_workers{{namespace="wan",model="{model}",state="busy"}}'
        assert triggers["busy"]["query"] == f"max(avg_over_time({busy}[5m]))"
        assert triggers["gateway"]["valueLocation"] == f'wan_demand_slots{{model="{model}"}}'


def test_pools_differ_in_what_they_serve_and_what_it_costs():
    first, second = (config(overlay, "wan-model-card") for overlay in NAMES)
    assert first["wan.json"] != second["wan.json"]
    assert first["cost.json"] != second["cost.json"]
    repositories = [config(overlay, "wan-artifacts")["MODEL_REPOSITORY"] for overlay in NAMES]
    assert len(set(repositories)) == 2
