"""Compare scaling rules on a simulated fleet: `python -m loadtest simulate --shape day --jobs 20000 --per-hour 600`."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from contract.errors import InvalidRequest
from contract.parallel import ONE_RANK, Degrees
from loadtest.base.inputs import ProfileError, number
from loadtest.fleet import plots
from loadtest.fleet.fleet import Fleet, FleetOptions
from loadtest.fleet.mix import DEFAULT_MIX, parse_mix
from loadtest.fleet.report import summarise, table
from loadtest.fleet.rules import OURS, Rule, rules
from loadtest.fleet.scaling import MANIFEST, ScalingPolicy, hpa_behavior
from loadtest.fleet.trace import SHAPES, Trace, make_trace, read_trace


def _degrees(text: str) -> Degrees:
    try:
        return Degrees.parse(text)
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(f"{text}; allowed: {error.allowed}") from None


def add(parser: argparse.ArgumentParser) -> None:
    load = parser.add_argument_group("arrivals")
    load.add_argument("--shape", choices=SHAPES, default="day")
    load.add_argument(
        "--trace", type=Path, help="JSON list of arrival seconds, or of [seconds, GPU-seconds]; instead of --shape"
    )
    load.add_argument("--jobs", type=number(1, 10_000_000, int), default=20_000)
    load.add_argument("--per-hour", type=number(0.01, 1e7), default=600.0, help="mean arrivals an hour")
    load.add_argument("--mix", default=DEFAULT_MIX, help="NAME:SHARE:GPU_SECONDS,…")
    load.add_argument(
        "--parallel", type=_degrees, default=ONE_RANK, metavar="cfg2xulyssesN",
        help="a replica makes one video on several GPUs, in the time that is predicted for them",
    )  # fmt: skip
    load.add_argument(
        "--prediction-error", type=number(0, 2), default=0.1, help="sigma of the lognormal error of the cost model"
    )
    fleet = parser.add_argument_group("fleet")
    fleet.add_argument("--manifest", type=Path, default=MANIFEST, help="file with the ScaledObject to simulate")
    fleet.add_argument("--max-replicas", type=number(1, 100_000, int), help="instead of the manifest's maxReplicaCount")
    fleet.add_argument(
        "--cold-start", type=number(0, 7200), default=180.0, help="seconds from the decision to a ready replica"
    )
    fleet.add_argument("--drain-budget", type=number(0, 7200), default=480.0, help="seconds that preStop may take")
    fleet.add_argument("--checkpoint-every", type=number(0.1, 3600), default=10.0, help="seconds between checkpoints")
    fleet.add_argument(
        "--spot-losses", type=number(0, 60), default=0.2, help="losses of a spot replica an hour; 0: no spot runs"
    )
    parser.add_argument(
        "--sweep", action="store_true", help="also draw cost against wait for several targets of each rule"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/simulate"), help="folder for result.json and pictures")


def simulate(options: argparse.Namespace) -> dict:
    """Run all scenarios of the command line and return the result that is written as JSON."""
    share = options.parallel.sequence_share / options.parallel.cfg
    mix = [replace(kind, gpu_seconds=kind.gpu_seconds * share) for kind in parse_mix(options.mix)]
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
    result = compare(trace, policy, fleet, options.spot_losses, options.seed, _progress, options.parallel.ranks)
    result["frontier"] = frontier(trace, policy, fleet, options.seed) if options.sweep else {}
    result["seconds"] = time.perf_counter() - began
    result["policy"], result["fleet"] = asdict(policy), asdict(fleet)
    result["gpus_per_replica"] = options.parallel.ranks
    result["trace"] = {"jobs": len(trace), "offered_load": trace.offered_load, "mix": [asdict(kind) for kind in mix]}
    return result


def _progress(name: str, row: dict) -> None:
    print(
        f"{name}: wait p95 {row['wait_p95']:.0f} s, {row['gpu_hours_per_video']:.4f} GPU-hours a video", file=sys.stderr
    )


def handle(options: argparse.Namespace) -> int:
    result = simulate(options)
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


Report = Callable[[str, dict], None]


def compare(
    trace: Trace,
    policy: ScalingPolicy,
    options: FleetOptions,
    losses_per_hour: float,
    seed: int,
    done: Report,
    gpus: int = 1,
) -> dict:
    """Run every scenario and return {"rows": name → summary, "timelines": rule → samples}."""
    rows: dict[str, dict] = {}
    timelines: dict[str, list] = {}

    def run(name: str, rule, changed: FleetOptions, followed: ScalingPolicy = policy) -> Fleet:
        fleet = Fleet(trace, followed, rule, changed, seed).run()
        rows[name] = summarise(fleet, gpus)
        done(name, rows[name])
        return fleet

    kinds = rules(policy)
    for name, kind in kinds.items():
        timelines[name] = run(name, kind.make(kind.target), options).accounts.samples
    ours = kinds[OURS].make(kinds[OURS].target)
    run("HPA in KEDA's place", ours, options, policy.with_hpa(hpa_behavior()))
    run("HPA, its own behavior", ours, options, policy.with_hpa())
    noon = min(43_200.0, trace.arrival[-1] / 2)  # of a day, when its load rises
    hour = (noon, noon + 3600)
    run("Prometheus away for an hour", ours, replace(options, blind=hour))
    run("the same without the trigger `gateway`", replace(ours, blind=Rule.blind), replace(options, blind=hour))
    for factor in (1 / 3, 3):
        seconds = options.cold_start * factor
        run(f"cold start {seconds:.0f} s", ours, replace(options, cold_start=seconds))
    if losses_per_hour:
        spot = replace(options, spot_losses_per_hour=losses_per_hour)
        run("spot, resume", ours, replace(spot, resume=True))
        run("spot, no resume", ours, replace(spot, resume=False))
    run("scale-down kills (no drain, no resume)", ours, replace(options, drain_budget=0, resume=False))
    return {"rows": rows, "timelines": timelines}


def frontier(trace: Trace, policy: ScalingPolicy, options: FleetOptions, seed: int) -> dict[str, list[dict]]:
    """Cost against wait for several targets of each rule."""
    curves: dict[str, list[dict]] = {}
    for name, kind in rules(policy).items():
        curves[name] = []
        for target in kind.sweep:
            summary = summarise(Fleet(trace, policy, kind.make(target), options, seed).run())
            curves[name].append({"target": target, **summary})
    return curves
