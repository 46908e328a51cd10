"""Is our scaling rule at or below every other one? `python -m loadtest frontier`: cost at equal wait, paired over seeds.

For each mix and seed our rule runs at its target; every other rule runs at all of its targets, and its cost at our 95th percentile
of the wait is read off its own curve. All rules see the same arrivals, so that the difference has no noise of the trace.
"""

import argparse
import json
import math
import multiprocessing
from pathlib import Path

import numpy as np

from loadtest.fleet import plots
from loadtest.fleet.fleet import Fleet, FleetOptions
from loadtest.fleet.mix import DEFAULT_MIX, parse_mix
from loadtest.fleet.report import summarise
from loadtest.fleet.rules import OURS, rules
from loadtest.fleet.scaling import ScalingPolicy
from loadtest.fleet.trace import make_trace

# name -> shape, jobs, jobs an hour, mix, what else the shape takes
MIXES: dict[str, tuple[str, int, float, str, dict]] = {
    "mixed, steady": ("poisson", 4000, 400.0, DEFAULT_MIX, {}),
    "mixed, a day's curve": ("day", 8000, 400.0, DEFAULT_MIX, {}),
    "mixed, half of it in bursts": ("bursts", 4000, 400.0, DEFAULT_MIX, {}),
    "14 s only": ("day", 10_000, 2400.0, "short:1:14", {}),
    "14 s and half an hour": ("day", 4000, 90.0, "short:0.7:14,long:0.3:1800", {}),
    "cheap and dear, every 3 h": ("shift", 6000, 400.0, DEFAULT_MIX, {"every": 10_800.0}),
    "cheap and dear, every hour": ("shift", 6000, 400.0, DEFAULT_MIX, {"every": 3600.0}),
}
OPTIONS = FleetOptions(cold_spread=0.3)
# Student's t, two-sided 95 %, by degrees of freedom
T95 = {1: 12.71, 2: 4.303, 3: 3.182, 5: 2.571, 7: 2.365, 9: 2.262, 11: 2.201, 15: 2.131, 19: 2.093}
POLICY = ScalingPolicy.from_manifest().resized(max_replicas=256)


def run(mix: str, rule: str, target: float, seed: int) -> tuple[float, float]:
    """(95th percentile of the wait, GPU-hours a video) of one simulation."""
    shape, jobs, per_hour, kinds, more = MIXES[mix]
    trace = make_trace(shape, jobs, per_hour, parse_mix(kinds), 0.1, seed, **more)
    row = summarise(Fleet(trace, POLICY, rules(POLICY)[rule].make(target), OPTIONS, seed).run())
    return row["wait_p95"], row["gpu_hours_per_video"]


def cost_at(wait: float, curve: list[tuple[float, float]]) -> float | None:
    """Cost of a rule where its wait is `wait`, between its targets; None if it never waits as little.

    A rule that waits less at every target costs at least what its cheapest target costs.
    """
    fast = [cost for waited, cost in curve if waited <= wait]
    if not fast:
        return None
    curve = sorted(curve)
    lowest = np.minimum.accumulate([cost for _, cost in curve])  # a longer wait never has to cost more
    return float(np.interp(wait, [waited for waited, _ in curve], lowest))


def differences(mix: str, seeds: int, pool) -> dict:
    """Our wait and cost, how much more (a share) every other rule costs at that wait with its 95 % interval, and all curves."""
    kinds = rules(POLICY)
    ours = pool.starmap(run, [(mix, OURS, kinds[OURS].target, seed) for seed in range(seeds)])
    found: dict = {"wait_p95": _mean(w for w, _ in ours), "cost": _mean(c for _, c in ours), "others": {}, "curves": {}}
    for name, kind in kinds.items():
        runs = pool.starmap(run, [(mix, name, target, seed) for seed in range(seeds) for target in kind.sweep], 1)
        curves = [runs[seed * len(kind.sweep) : (seed + 1) * len(kind.sweep)] for seed in range(seeds)]
        found["curves"][name] = np.mean(curves, axis=0).tolist()
        if name == OURS:
            continue
        costs = [cost_at(wait, curve) for (wait, _), curve in zip(ours, curves, strict=True)]
        if None in costs:
            found["others"][name] = None
            continue
        more = np.array([cost / own - 1 for cost, (_, own) in zip(costs, ours, strict=True)])
        half = T95[max(k for k in T95 if k <= seeds - 1)] * more.std(ddof=1) / math.sqrt(seeds)
        found["others"][name] = [float(more.mean()), float(half)]
    return found


def _mean(values) -> float:
    return float(np.mean(list(values)))


def table(result: dict) -> str:
    """As Markdown, one line a mix."""
    names = list(next(iter(result.values()))["others"])
    lines = [
        "| mix | our wait p95 | our GPU-hours a video | " + " | ".join(names) + " |",
        "|---" * (len(names) + 3) + "|",
    ]
    for mix, row in result.items():
        cells = ["never" if row["others"][n] is None else "{:+.1f} ± {:.1f} %".format(*(100 * v for v in row["others"][n]))
                 for n in names]  # fmt: skip
        lines.append(f"| {mix} | {row['wait_p95']:.0f} s | {row['cost']:.4f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def one_target(result: dict) -> dict[str, tuple[float, float, float] | None]:
    """What a rule waits with one target for all mixes, the one at which it costs what ours does.

    Mean over the mixes of wait and cost, each as a multiple of ours, decides; returns (mean wait, longest wait, dearest mix). None
    for a rule that costs more or less at all of its targets.
    """
    found: dict[str, tuple[float, float, float] | None] = {}
    for name in next(iter(result.values()))["curves"]:
        # [mixes, targets, (wait, cost)], in multiples of ours
        curves = np.array([np.array(row["curves"][name]) / (row["wait_p95"], row["cost"]) for row in result.values()])
        waits, costs = curves[..., 0], curves[..., 1]
        order = np.argsort(costs.mean(axis=0))
        mean = costs.mean(axis=0)[order]
        if not mean[0] <= 1 <= mean[-1]:
            found[name] = None
            continue
        at_one = [float(np.interp(1, mean, values[order]))
                  for values in (waits.mean(axis=0), waits.max(axis=0), costs.max(axis=0))]  # fmt: skip
        found[name] = at_one[0], at_one[1], at_one[2]
    return found


def table_of_one_target(result: dict) -> str:
    """As Markdown, one line a rule."""
    lines = ["| rule | wait, mean of the mixes | longest wait | dearest mix |", "|---|---|---|---|"]
    for name, numbers in one_target(result).items():
        cells = ["never at our cost"] * 3 if numbers is None else [f"{number:.2f}x" for number in numbers]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, choices=[k + 1 for k in T95], default=12)
    parser.add_argument("--out", type=Path, default=Path("build/frontier.json"))
    parser.add_argument(
        "--plot", type=Path, default=Path("build/frontier.svg"), help="cost against wait, a panel a mix"
    )


def handle(options: argparse.Namespace) -> int:
    with multiprocessing.get_context("fork").Pool() as pool:
        result = {mix: differences(mix, options.seeds, pool) for mix in MIXES}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"seeds": options.seeds, "mixes": result}, indent=1) + "\n")
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    plots.frontiers(result, OURS, options.plot)
    print(table(result))
    print(f"\nOne target for all mixes, at the cost of ours; multiples of ours:\n\n{table_of_one_target(result)}")
    return 0
