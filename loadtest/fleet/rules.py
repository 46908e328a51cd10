"""The scaling rules that are compared: each maps what Prometheus shows to a raw number of replicas."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from loadtest.fleet.hpa import combined, desired_replicas, replicas_for_pods
from loadtest.fleet.scaling import ScalingPolicy, replicas_for


@dataclass(frozen=True)
class State:
    """What the metrics say at one moment."""

    now: float
    queued: int  # jobs that nobody runs yet
    running: int
    backlog: float  # predicted GPU-seconds left, queued plus running
    demand: float  # slots worth having: every job counts for its predicted seconds / slot_seconds, at most for one
    ready: int  # replicas past their cold start and not draining
    busy: int
    busy_mean: float  # of the last minutes, as the query of the manifests asks


Wanted = Callable[[State, int], int]


@dataclass(frozen=True)
class Rule:
    """The raw number of replicas for a state and the current number; `slot_seconds` is what its demand divides by.

    `blind` is asked while Prometheus is away, with a state of which only the gateway's own metrics may be used.
    """

    wanted: Wanted
    slot_seconds: float = 180.0
    blind: Wanted = lambda state, current: current


def predicted_slots(policy: ScalingPolicy, target: float) -> Rule:
    """The rule of the manifests: demand with `target` seconds a slot, and a replica for every busy slot."""
    return Rule(
        lambda state, current: replicas_for(state.demand, state.busy_mean, policy, current),
        target,
        # The trigger `gateway` answers, the two that ask Prometheus do not.
        lambda state, current: combined([desired_replicas(state.demand, 1, current), None, None], current),
    )


def without_floor(target: float) -> Rule:
    """Demand alone, as if a GPU whose job is nearly done were nearly free."""
    return Rule(lambda state, current: desired_replicas(state.demand, 1, current), target)


def uncapped(target: float) -> Rule:
    """A replica for every `target` predicted GPU-seconds, as if a job could use more than one, and every busy slot."""
    return Rule(lambda state, current: max(desired_replicas(state.backlog, target, current), state.busy))


def jobs(target: float) -> Rule:
    """One replica for every `target` jobs, waiting or running: what is left without a cost model."""
    return Rule(lambda state, current: desired_replicas(state.queued + state.running, target, current))


def jobs_and_busy(target: float) -> Rule:
    """One replica for every `target` jobs, and one for every busy slot."""
    return Rule(lambda state, current: max(desired_replicas(state.queued + state.running, target, current), state.busy))


def queue_length(target: float) -> Rule:
    """One replica for every `target` waiting jobs: scaling on `nv_inference_pending_request_count` or a broker's depth."""
    return Rule(lambda state, current: desired_replicas(state.queued, target, current))


def gpu_utilisation(target: float) -> Rule:
    """Mean utilisation held at `target` (0..1); a replica that is not ready counts as 0 where that damps a scale-up."""

    def wanted(state: State, current: int) -> int:
        # Without a pod there is no GPU to be measured: something else must keep one alive.
        values = [1.0] * state.busy + [0.0] * (state.ready - state.busy)
        return replicas_for_pods(values, target, max(current, 1))

    return Rule(wanted)


@dataclass(frozen=True)
class RuleKind:
    """A rule, the target it is usually given, and the targets that its frontier is drawn from."""

    make: Callable[[float], Rule]
    target: float
    sweep: tuple[float, ...]


OURS = "predicted slots"
FACTORS = (0.5, 0.75, 1, 1.5, 2, 3, 4)


def rules(policy: ScalingPolicy) -> dict[str, RuleKind]:
    """All rules; ours takes its target from the settings."""
    target = policy.slot_seconds
    return {
        OURS: RuleKind(partial(predicted_slots, policy), target, tuple(target * f for f in FACTORS)),
        "without busy floor": RuleKind(without_floor, target, tuple(target * f for f in FACTORS)),
        "uncapped": RuleKind(uncapped, target, tuple(target * f for f in FACTORS)),
        "jobs": RuleKind(jobs, 1, (0.6, 0.8, 1, 1.25, 1.5, 1.75, 2, 3)),
        "jobs and busy": RuleKind(jobs_and_busy, 1.5, (1, 1.25, 1.5, 1.75, 2, 2.5, 3)),
        "queue length": RuleKind(queue_length, 1, (0.1, 0.25, 0.5, 1, 2, 4)),
        "GPU utilisation": RuleKind(gpu_utilisation, 0.8, (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
    }
