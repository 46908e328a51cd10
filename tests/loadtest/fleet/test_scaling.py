"""The replica formula and the autoscaler's memory, against hand-made cases and the manifests."""

import pytest
import yaml

from loadtest.base.inputs import ProfileError
from loadtest.fleet.scaling import MANIFEST, Autoscaler, Limit, ScalingPolicy, desired_replicas, replicas_for, slots_of

HPA = MANIFEST.parents[1] / "autoscale-hpa"


@pytest.fixture(scope="module")
def policy():
    return ScalingPolicy.from_manifest()


def scaler(**changes) -> Autoscaler:
    fixed = dict(
        min_replicas=1, max_replicas=100, cooldown=900, up_window=0, up_limits=(), down_window=0, down_limits=()
    )
    return Autoscaler(ScalingPolicy.from_manifest().resized(**fixed | changes))


def test_one_replica_for_every_started_share_of_the_backlog():
    assert desired_replicas(541, 180, 1) == 4
    assert desired_replicas(540, 180, 1) == 3


def test_a_deviation_within_ten_per_cent_changes_nothing():
    assert desired_replicas(197, 180, 1) == 1
    assert desired_replicas(199, 180, 1) == 2


def wanted(policy, *seconds: float, busy: int = 0) -> int:
    demand = sum(slots_of(left, policy.slot_seconds) for left in seconds)
    return replicas_for(demand, busy, policy, current=busy)


def test_one_long_job_asks_for_one_replica(policy):
    """It runs on one slot: whether it waits or runs, and however long it takes."""
    assert wanted(policy, 3722) == 1
    assert wanted(policy, 3722, busy=1) == 1


def test_many_short_jobs_share_replicas_and_long_ones_do_not(policy):
    assert wanted(policy, *[12] * 50) == 5
    assert wanted(policy, *[3600] * 5) == 5
    assert wanted(policy, *[12] * 50, *[3600] * 5) == 10
    assert wanted(policy, *[12] * 50, 3600, busy=1) == 6


def test_busy_replicas_are_never_counted_as_idle(policy):
    """Eight jobs that are nearly done have hardly any work left, and still hold eight GPUs."""
    assert wanted(policy, *[5] * 8, busy=8) == 8
    assert wanted(policy, *[400] * 8, busy=8) == 8


def test_hpa_and_keda_say_the_same(policy):
    hpa = yaml.safe_load((HPA / "horizontal-pod-autoscaler.yaml").read_text())["spec"]
    targets = {m["object"]["metric"]["name"]: float(m["object"]["target"]["averageValue"]) for m in hpa["metrics"]}
    assert targets == {"wan_demand_slots": policy.slots_per_replica, "wan_workers_busy": policy.busy_per_replica}
    keda = yaml.safe_load(MANIFEST.read_text())["spec"]
    assert hpa["behavior"] == keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert hpa["maxReplicas"] == keda["maxReplicaCount"]


def test_hpa_and_keda_can_share_a_cluster():
    """KEDA owns APIService v1beta1.external.metrics.k8s.io; the adapter's chart would take it for a single external rule."""
    rules = yaml.safe_load((HPA / "prometheus-adapter-values.yaml").read_text())["rules"]
    assert set(rules) == {"default", "custom"}
    assert rules["default"] is False
    hpa = yaml.safe_load((HPA / "horizontal-pod-autoscaler.yaml").read_text())["spec"]
    assert {metric["type"] for metric in hpa["metrics"]} == {"Object"}


def test_adapter_and_keda_ask_the_same_question(policy):
    """The adapter fills in the series name, the namespace of the HPA, and the label to group by: the namespace again."""
    rules = yaml.safe_load((HPA / "prometheus-adapter-values.yaml").read_text())["rules"]["custom"]
    asked = {}
    for rule in rules:
        assert rule["metricsQuery"].endswith(" by (<<.GroupBy>>)")
        assert rule["resources"] == {"overrides": {"namespace": {"resource": "namespace"}}}
        series = rule["seriesQuery"].split("{")[0]
        query = (
            rule["metricsQuery"]
            .replace("<<.Series>>", series)
            .replace("<<.LabelMatchers>>", 'namespace="wan",model="wan"')
        )
        asked[rule["name"]["as"]] = query.removesuffix(" by (<<.GroupBy>>)")
    assert asked == {"wan_demand_slots": policy.demand_query, "wan_workers_busy": policy.busy_query}


def test_scale_up_is_limited_to_the_largest_policy():
    both = (Limit(True, 100, 60), Limit(False, 8, 60))
    assert scaler(up_limits=both).decide(0, 2, 50, True) == 10
    assert scaler(up_limits=both).decide(0, 20, 50, True) == 40


def test_replicas_added_within_the_period_count_against_the_limit():
    one = scaler(up_limits=(Limit(False, 8, 60),))
    assert one.decide(0, 2, 50, True) == 10
    assert one.decide(30, 10, 50, True) == 10
    assert one.decide(61, 10, 50, True) == 18


def test_scale_down_waits_for_the_highest_wish_of_the_window():
    one = scaler(down_window=900)
    assert one.decide(0, 10, 10, True) == 10
    assert one.decide(450, 10, 2, True) == 10
    assert one.decide(901, 10, 2, True) == 2


def test_scale_down_is_limited_too():
    assert scaler(down_limits=(Limit(True, 25, 60), Limit(False, 1, 60))).decide(0, 16, 1, True) == 12


def test_from_zero_on_the_first_job_and_back_after_the_cooldown():
    one = scaler(min_replicas=0, cooldown=900)
    assert one.decide(0, 0, 0, active=False) == 0
    assert one.decide(15, 0, 5, active=True) == 1
    assert one.decide(600, 1, 0, active=False) == 1
    assert one.decide(915, 1, 0, active=False) == 0


def test_a_file_without_a_scaled_object_is_refused(tmp_path):
    path = tmp_path / "hpa.yaml"
    path.write_text("kind: HorizontalPodAutoscaler\n")
    with pytest.raises(ProfileError, match="holds no ScaledObject"):
        ScalingPolicy.from_manifest(path)
