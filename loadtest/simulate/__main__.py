"""Compare scaling rules on a simulated fleet: `python -m loadtest.simulate --shape day --jobs 20000 --per-hour 600`."""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from loadtest.errors import LoadTestError, ProfileError
from loadtest.simulate import plots, scenarios
from loadtest.simulate.fleet import FleetOptions
from loadtest.simulate.mix import DEFAULT_MIX, parse_mix
from loadtest.simulate.report import table
from loadtest.simulate.scaling import MANIFEST, ScalingPolicy
from loadtest.simulate.trace import SHAPES, make_trace, read_trace


def _number(low: float, high: float, kind=float):
    def parse(text: str):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text}; allowed: {low:g} to {high:g}")
        return value

    parse.__name__ = kind.__name__
    return parse


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.simulate", description=__doc__)
    load = parser.add_argument_group("arrivals")
    load.add_argument("--shape", choices=SHAPES, default="day")
    load.add_argument(
        "--trace", type=Path, help="JSON list of arrival seconds, or of [seconds, GPU-seconds]; instead of --shape"
    )
    load.add_argument("--jobs", type=_number(1, 10_000_000, int), default=20_000)
    load.add_argument("--per-hour", type=_number(0.01, 1e7), default=600.0, help="mean arrivals an hour")
    load.add_argument("--mix", default=DEFAULT_MIX, help="NAME:SHARE:GPU_SECONDS,… (default: %(default)s)")
    load.add_argument(
        "--prediction-error", type=_number(0, 2), default=0.1, help="sigma of the lognormal error of the cost model"
    )
    fleet = parser.add_argument_group("fleet")
    fleet.add_argument("--manifest", type=Path, default=MANIFEST, help="file with the ScaledObject to simulate")
    fleet.add_argument(
        "--max-replicas", type=_number(1, 100_000, int), help="instead of the manifest's maxReplicaCount"
    )
    fleet.add_argument(
        "--cold-start", type=_number(0, 7200), default=180.0, help="seconds from the decision to a ready replica"
    )
    fleet.add_argument("--drain-budget", type=_number(0, 7200), default=480.0, help="seconds that preStop may take")
    fleet.add_argument("--checkpoint-every", type=_number(0.1, 3600), default=10.0, help="seconds between checkpoints")
    fleet.add_argument(
        "--spot-losses", type=_number(0, 60), default=0.2, help="losses of a spot replica an hour; 0: no spot runs"
    )
    parser.add_argument(
        "--sweep", action="store_true", help="also draw cost against wait for several targets of each rule"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/simulate"), help="folder for result.json and pictures")
    return parser.parse_args(arguments)


def simulate(options: argparse.Namespace) -> dict:
    """Run all scenarios of the command line and return the result that is written as JSON."""
    mix = parse_mix(options.mix)
    if options.trace:
        trace = read_trace(options.trace, mix, options.prediction_error, options.seed)
    else:
        trace = make_trace(options.shape, options.jobs, options.per_hour, mix, options.prediction_error, options.seed)
    policy = ScalingPolicy.from_manifest(options.manifest)
    if options.max_replicas:
        policy = policy.resized(max_replicas=options.max_replicas)
    if trace.offered_load > policy.max_replicas:
        raise ProfileError(
            f"the trace keeps {trace.offered_load:.1f} GPUs busy on average; allowed: at most maxReplicaCount, which is "
            f"{policy.max_replicas} (lower --per-hour or raise --max-replicas)"
        )
    fleet = FleetOptions(
        cold_start=options.cold_start, drain_budget=options.drain_budget, checkpoint_every=options.checkpoint_every
    )
    began = time.perf_counter()
    result = scenarios.compare(trace, policy, fleet, options.spot_losses, options.seed, _progress)
    result["frontier"] = scenarios.frontier(trace, policy, fleet, options.seed) if options.sweep else {}
    result["seconds"] = time.perf_counter() - began
    result["policy"], result["fleet"] = asdict(policy), asdict(fleet)
    result["trace"] = {"jobs": len(trace), "offered_load": trace.offered_load, "mix": [asdict(kind) for kind in mix]}
    return result


def _progress(name: str, row: dict) -> None:
    print(
        f"{name}: wait p95 {row['wait_p95']:.0f} s, {row['gpu_hours_per_video']:.4f} GPU-hours a video", file=sys.stderr
    )


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        result = simulate(options)
    except LoadTestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    timelines = result.pop("timelines")
    (options.out / "result.json").write_text(json.dumps(result, indent=1))
    plots.timelines(timelines, options.out / "timeline.png")
    plots.shares(result["rows"], options.out / "gpu-hours.png")
    if result["frontier"]:
        plots.frontier(result["frontier"], options.out / "frontier.png")
    print(table(result["rows"]))
    print(f"\n{len(result['rows'])} runs in {result['seconds']:.1f} s; details in {options.out}/", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
