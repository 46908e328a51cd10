"""The runs of one comparison: every rule, other cold starts, spot losses with and without resume, the frontier."""

from collections.abc import Callable
from dataclasses import replace

from loadtest.simulate.fleet import Fleet, FleetOptions
from loadtest.simulate.report import summarise
from loadtest.simulate.rules import OURS, rules
from loadtest.simulate.scaling import ScalingPolicy
from loadtest.simulate.trace import Trace

Report = Callable[[str, dict], None]


def compare(
    trace: Trace, policy: ScalingPolicy, options: FleetOptions, losses_per_hour: float, seed: int, done: Report
) -> dict:
    """Run every scenario and return {"rows": name → summary, "timelines": rule → samples}."""
    rows: dict[str, dict] = {}
    timelines: dict[str, list] = {}

    def run(name: str, rule, changed: FleetOptions) -> Fleet:
        fleet = Fleet(trace, policy, rule, changed, seed).run()
        rows[name] = summarise(fleet)
        done(name, rows[name])
        return fleet

    kinds = rules(policy)
    for name, kind in kinds.items():
        timelines[name] = run(name, kind.make(kind.target), options).accounts.samples
    ours = kinds[OURS].make(kinds[OURS].target)
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
    curves = {}
    for name, kind in rules(policy).items():
        curves[name] = []
        for target in kind.sweep:
            summary = summarise(Fleet(trace, policy, kind.make(target), options, seed).run())
            curves[name].append({"target": target, **summary})
    return curves
