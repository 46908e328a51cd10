"""The replica formula, read from the manifests, and what the HorizontalPodAutoscaler remembers while it follows it."""

import math
import re
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from loadtest.base.inputs import ProfileError
from loadtest.fleet.hpa import DEFAULT_BEHAVIOR, combined, desired_replicas
from service.settings import Settings

MANIFEST = Path(__file__).parents[2] / "k8s/components/autoscale-keda/scaled-object.yaml"
HPA_MANIFEST = MANIFEST.parents[1] / "autoscale-hpa/horizontal-pod-autoscaler.yaml"


def slots_of(seconds: float, slot_seconds: float) -> float:
    """What a job of so many predicted seconds adds to the demand: it runs on one slot, so never more than one."""
    return min(seconds / slot_seconds, 1.0)


def replicas_for(demand: float, busy: float, policy: "ScalingPolicy", current: int) -> int:
    """The documented formula: enough replicas for the demand (slots), never fewer than the busy ones."""
    demanded = desired_replicas(demand, policy.slots_per_replica, current)
    return combined([demanded, desired_replicas(busy, policy.busy_per_replica, current)], current)


@dataclass(frozen=True)
class Limit:
    """One policy of `behavior`: at most `value` pods, or per cent, in `seconds`."""

    percent: bool
    value: int
    seconds: float


@dataclass(frozen=True)
class ScalingPolicy:
    """Everything that decides the number of replicas, as manifests and settings state it; times in seconds."""

    demand_query: str
    busy_query: str
    slot_seconds: float  # predicted work that makes a slot worth having
    slots_per_replica: float
    busy_per_replica: float
    busy_window: float  # the busy replicas are a mean over this time
    min_replicas: int
    max_replicas: int
    cooldown: float  # idle time before the step from one replica to none
    up_window: float
    up_limits: tuple[Limit, ...]
    down_window: float
    down_limits: tuple[Limit, ...]
    up_select: str = "Max"  # which of several limits holds: Max, Min, or Disabled
    down_select: str = "Max"
    polling: float = 15.0  # KEDA looks that often whether the step from none to one is due

    @classmethod
    def from_manifest(cls, path: Path = MANIFEST) -> "ScalingPolicy":
        """Read a ScaledObject; raises ProfileError naming the file if it does not hold one that can be simulated."""
        try:
            documents = [d for d in yaml.safe_load_all(Path(path).read_text()) if d and d.get("kind") == "ScaledObject"]
        except (OSError, yaml.YAMLError) as problem:
            raise ProfileError(f"manifest {path}: {problem}") from None
        if not documents:
            raise ProfileError(
                f"{path} holds no ScaledObject; pass the file of an autoscale-keda component or a rendered overlay"
            )
        spec = documents[0]["spec"]
        triggers = {
            trigger.get("name"): trigger["metadata"] for trigger in spec["triggers"] if trigger["type"] == "prometheus"
        }
        if set(triggers) != {"demand", "busy"}:
            raise ProfileError(
                f"{path} has the Prometheus triggers {sorted(map(str, triggers))}; needed: demand and busy"
            )
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        return cls(
            demand_query=triggers["demand"]["query"],
            busy_query=triggers["busy"]["query"],
            slot_seconds=Settings.model_fields["slot_seconds"].default,
            slots_per_replica=float(triggers["demand"]["threshold"]),
            busy_per_replica=float(triggers["busy"]["threshold"]),
            busy_window=_window(triggers["busy"]["query"]),
            min_replicas=spec["minReplicaCount"],
            max_replicas=spec["maxReplicaCount"],
            cooldown=float(spec["cooldownPeriod"]),
            polling=float(spec.get("pollingInterval", 30)),
            **behaves(behavior),
        )

    def with_hpa(self, behavior: dict | None = None) -> "ScalingPolicy":
        """As an HPA of one's own follows the same metrics: never below one replica, and with `behavior` or what Kubernetes says."""
        return self.resized(min_replicas=max(1, self.min_replicas), **behaves(behavior or {}))

    def resized(self, **changes) -> "ScalingPolicy":
        return replace(self, **changes)


def _window(query: str) -> float:
    """Seconds of `avg_over_time(…[5m])` in a query; 0 without."""
    found = re.search(r"avg_over_time\(.*\[(\d+)([sm])\]\)", query)
    return float(found[1]) * {"s": 1, "m": 60}[found[2]] if found else 0.0


def hpa_behavior() -> dict:
    """`behavior` of the component `autoscale-hpa`."""
    return yaml.safe_load(HPA_MANIFEST.read_text())["spec"]["behavior"]


def behaves(behavior: dict) -> dict:
    """The fields of a policy that `behavior` says; what it leaves out is as Kubernetes has it."""
    found: dict = {}
    for name, direction in (("up", "scaleUp"), ("down", "scaleDown")):
        rules = DEFAULT_BEHAVIOR[direction] | behavior.get(direction, {})
        found[f"{name}_window"] = float(rules["stabilizationWindowSeconds"])
        found[f"{name}_limits"] = tuple(
            Limit(p["type"] == "Percent", p["value"], float(p["periodSeconds"])) for p in rules["policies"]
        )
        found[f"{name}_select"] = rules.get("selectPolicy", "Max")
    return found


class Autoscaler:
    """The HorizontalPodAutoscaler's memory: stabilisation windows, rate limits, KEDA's step to and from zero."""

    def __init__(self, policy: ScalingPolicy):
        self.policy = policy
        self._wanted: deque[tuple[float, int]] = deque()  # recommendations inside the longest window
        self._changes: deque[tuple[float, int]] = deque()
        self._last_active = 0.0
        self._polled = -math.inf

    def decide(self, now: float, current: int, wanted: int, active: bool) -> int:
        """Replicas from now on, of `current`; `wanted` is the raw recommendation, `active` says whether any work exists."""
        policy = self.policy
        if active:
            self._last_active = now
        if current == 0:
            if now - self._polled < policy.polling:
                return 0
            self._polled = now
            return max(1, policy.min_replicas) if active else policy.min_replicas
        if not active and policy.min_replicas == 0 and now - self._last_active >= policy.cooldown and current == 1:
            return 0
        wanted = min(max(wanted, policy.min_replicas, 1), policy.max_replicas)
        target = self._stabilised(now, current, wanted)
        if target > current:
            target = min(target, self._ceiling(now, current))
        elif target < current:
            target = max(target, self._floor(now, current))
        if target != current:
            self._changes.append((now, target - current))
        return target

    def _stabilised(self, now: float, current: int, wanted: int) -> int:
        policy = self.policy
        while self._wanted and self._wanted[0][0] < now - max(policy.up_window, policy.down_window):
            self._wanted.popleft()
        # Equal neighbours are kept once, at their latest time, so that a long window stays short.
        if len(self._wanted) > 1 and self._wanted[-1][1] == wanted:
            self._wanted.pop()
        self._wanted.append((now, wanted))
        down_to = max(value for time, value in self._wanted if time >= now - policy.down_window)
        up_to = min(value for time, value in self._wanted if time >= now - policy.up_window)
        return min(max(current, up_to), down_to)

    def _changed_since(self, start: float) -> int:
        return sum(change for time, change in self._changes if time >= start)

    def _ceiling(self, now: float, current: int) -> int:
        self._forget(now)
        if self.policy.up_select == "Disabled":
            return current
        tops = []
        for limit in self.policy.up_limits:
            before = current - self._changed_since(now - limit.seconds)
            tops.append(math.ceil(before * (1 + limit.value / 100)) if limit.percent else before + limit.value)
        choose = min if self.policy.up_select == "Min" else max
        return max(choose(tops), current) if tops else self.policy.max_replicas

    def _floor(self, now: float, current: int) -> int:
        self._forget(now)
        if self.policy.down_select == "Disabled":
            return current
        bottoms = []
        for limit in self.policy.down_limits:
            before = current - self._changed_since(now - limit.seconds)
            bottoms.append(int(before * (1 - limit.value / 100)) if limit.percent else before - limit.value)
        # The limit that allows the larger change is the lower bottom.
        choose = max if self.policy.down_select == "Min" else min
        return min(choose(bottoms), current) if bottoms else 0

    def _forget(self, now: float) -> None:
        longest = max((limit.seconds for limit in self.policy.up_limits + self.policy.down_limits), default=0)
        while self._changes and self._changes[0][0] < now - longest:
            self._changes.popleft()
