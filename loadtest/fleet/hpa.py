"""The HorizontalPodAutoscaler's own arithmetic: what each metric asks for, and which of them wins.

Sources: https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#algorithm-details and
kubernetes/kubernetes pkg/controller/podautoscaler/{replica_calculator,horizontal}.go. Its memory (windows, rate limits) is
`loadtest.fleet.scaling.Autoscaler`.
"""

import math
from collections.abc import Sequence

TOLERANCE = 0.1  # kube-controller-manager --horizontal-pod-autoscaler-tolerance
SYNC_SECONDS = 15.0  # kube-controller-manager --horizontal-pod-autoscaler-sync-period
# `behavior` of an HPA that says nothing about it.
DEFAULT_BEHAVIOR: dict[str, dict] = {
    "scaleUp": {
        "stabilizationWindowSeconds": 0,
        "policies": [
            {"type": "Percent", "value": 100, "periodSeconds": 15},
            {"type": "Pods", "value": 4, "periodSeconds": 15},
        ],
    },
    "scaleDown": {
        "stabilizationWindowSeconds": 300,
        "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
    },
}


def desired_replicas(total: float, per_replica: float, current: int) -> int:
    """Replicas that an AverageValue target asks for: ceil(total / per_replica), or `current` if that is within 10 %."""
    if current and abs(total / (per_replica * current) - 1) <= TOLERANCE:
        return current
    return math.ceil(total / per_replica)


def replicas_for_pods(values: Sequence[float], target: float, current: int) -> int:
    """Replicas that a mean of `target` over the pods asks for; `values` are those of the ready pods, the others count as 0.

    A pod without a value only ever damps: what it would turn round, up into down or down into up, stays as it is.
    """
    if not values:
        return current
    ratio = sum(values) / len(values) / target
    missing = current - len(values)
    # On the way down a pod that is not ready is left out, on the way up it counts as idle.
    if missing <= 0 or ratio <= 1:
        return current if abs(ratio - 1) <= TOLERANCE else math.ceil(ratio * len(values))
    damped = sum(values) / current / target
    if abs(damped - 1) <= TOLERANCE or damped < 1:
        return current
    return max(math.ceil(damped * current), current)


def combined(wishes: Sequence[int | None], current: int) -> int:
    """The largest wish; None is a metric without an answer, beside which nothing is scaled down."""
    answers = [wish for wish in wishes if wish is not None]
    if not answers:
        return current
    return max(answers) if len(answers) == len(wishes) else max(*answers, current)
