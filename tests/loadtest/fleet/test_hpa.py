"""The HPA's arithmetic against the cases of its documentation and of kubernetes/kubernetes replica_calculator_test.go."""

import numpy as np
import pytest

from loadtest.fleet.fleet import Fleet, FleetOptions
from loadtest.fleet.hpa import DEFAULT_BEHAVIOR, combined, desired_replicas, replicas_for_pods
from loadtest.fleet.rules import OURS, rules
from loadtest.fleet.scaling import Autoscaler, Limit, ScalingPolicy, behaves, hpa_behavior
from loadtest.fleet.trace import Trace

POLICY = ScalingPolicy.from_manifest()


def scaler(**changes) -> Autoscaler:
    return Autoscaler(POLICY.resized(min_replicas=1, max_replicas=1000, **changes))


def test_twice_the_value_wants_twice_the_replicas_and_half_of_it_half():
    """The documentation's example: a value of 200m with a target of 100m doubles, 50m halves."""
    assert replicas_for_pods([0.2] * 4, 0.1, 4) == 8
    assert replicas_for_pods([0.05] * 4, 0.1, 4) == 2


def test_a_ratio_within_a_tenth_of_one_changes_nothing():
    assert replicas_for_pods([0.109] * 10, 0.1, 10) == 10
    assert replicas_for_pods([0.112] * 10, 0.1, 10) == 12
    assert desired_replicas(10.9, 1, 10) == 10


def test_fractions_are_rounded_up():
    assert replicas_for_pods([0.5, 0.5, 0.5], 0.3, 3) == 5
    assert desired_replicas(4.01, 2, 1) == 3


def test_pods_without_a_value_damp_what_the_others_ask_for():
    """replica_calculator_test.go, ScaleUpUnreadyLessScale: 0.5 and 0.7 beside one unready pod, target 0.3: from 3 to 4, not 6."""
    assert replicas_for_pods([0.5, 0.7], 0.3, 3) == 4
    # ScaleUpUnreadyNoScale: 0.4 of one ready pod among three is 0.133 a pod, which is less than the target.
    assert replicas_for_pods([0.4], 0.3, 3) == 3
    assert replicas_for_pods([], 0.3, 3) == 3


def test_on_the_way_down_pods_that_are_not_ready_are_left_out():
    """ScaleDownIgnoresUnreadyPods: 0.3, 0.3 and 0.3 of five pods at a target of 0.5 leave two."""
    assert replicas_for_pods([0.3, 0.3, 0.3], 0.5, 5) == 2


def test_the_largest_wish_wins_and_a_metric_without_an_answer_forbids_to_scale_down():
    assert combined([3, 7, 5], 4) == 7
    assert combined([3, None], 4) == 4
    assert combined([6, None], 4) == 6
    assert combined([None, None], 4) == 4


def test_without_behavior_it_doubles_or_adds_four_in_15_seconds_and_remembers_5_minutes():
    fields = behaves({})
    assert fields["up_limits"] == (Limit(True, 100, 15), Limit(False, 4, 15))
    assert (fields["up_window"], fields["down_window"]) == (0, 300)
    one = scaler(**fields)
    assert [one.decide(now, current, 100, True) for now, current in ((0, 1), (15.1, 5), (30.2, 10))] == [5, 10, 20]
    one = scaler(**fields)
    assert one.decide(0, 10, 10, True) == 10
    assert one.decide(299, 10, 2, True) == 10
    assert one.decide(301, 10, 2, True) == 2


@pytest.mark.parametrize(("select", "up", "down"), [("Max", 40, 12), ("Min", 24, 15), ("Disabled", 16, 16)])
def test_select_policy(select, up, down):
    """The documentation's example: of 4 pods and 10 % (here other numbers) Max allows the larger change, Min the smaller."""
    limits = (Limit(True, 150, 60), Limit(False, 8, 60))
    assert scaler(up_window=0, up_limits=limits, up_select=select).decide(0, 16, 100, True) == up
    limits = (Limit(True, 25, 60), Limit(False, 1, 60))
    assert scaler(down_window=0, down_limits=limits, down_select=select).decide(0, 16, 1, True) == down


def test_a_percentage_down_is_taken_of_what_the_period_began_with():
    """The documentation's example: 80 replicas, 10 % a minute: 72 after the first, then 10 % of 72."""
    one = scaler(down_window=0, down_limits=(Limit(True, 10, 60), Limit(False, 4, 60)))
    assert one.decide(0, 80, 10, True) == 72
    assert one.decide(30, 72, 10, True) == 72
    assert one.decide(61, 72, 10, True) == 64


def test_keda_polls_before_it_starts_the_first_replica():
    one = Autoscaler(POLICY.resized(polling=60))
    assert one.decide(0, 0, 0, active=False) == 0
    assert one.decide(45, 0, 3, active=True) == 0
    assert one.decide(60, 0, 3, active=True) == 1


def test_the_component_of_the_hpa_is_followed_as_it_stands():
    policy = POLICY.with_hpa(hpa_behavior())
    assert (policy.min_replicas, policy.down_window) == (1, POLICY.down_window)
    assert POLICY.with_hpa().down_window == DEFAULT_BEHAVIOR["scaleDown"]["stabilizationWindowSeconds"]


def test_while_prometheus_is_away_the_gateways_trigger_adds_replicas_and_none_is_taken():
    work = np.full(60, 600.0)
    trace = Trace(np.array([0.0] * 10 + [2000.0] * 50), work, work)
    kind = rules(POLICY)[OURS]
    away = FleetOptions(blind=(1900.0, 9000.0))
    fleet = Fleet(trace, POLICY, kind.make(kind.target), away).run()
    replicas = [sample[3] for sample in fleet.accounts.samples if 1900 <= sample[0] < 9000]
    assert replicas == sorted(replicas)
    assert replicas[-1] == POLICY.max_replicas
    deaf = Fleet(trace, POLICY, rules(POLICY)["jobs"].make(1), away).run()
    assert len({sample[3] for sample in deaf.accounts.samples if 1900 <= sample[0] < 9000}) == 1
