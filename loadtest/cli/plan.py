"""`plan`: replicas and cost for a traffic forecast."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtest.planner import load_capacity, load_forecast, plan
from loadtest.report import shown


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("capacity", type=Path, help="capacity.json of a capacity search")
    parser.add_argument("forecast", type=Path, help="YAML forecast; see loadtest/README.md")
    parser.add_argument("--replicas", type=int, default=1, help="replicas that ran during the capacity search")
    parser.add_argument("--json", action="store_true", help="print JSON")


def handle(given: argparse.Namespace) -> int:
    """Print the plan; exit code 1 if the forecast's maximum_replicas cannot carry the traffic."""
    measured, forecast = load_capacity(given.capacity), load_forecast(given.forecast)
    made = plan(measured["capacity_per_minute"], given.replicas, forecast)
    if given.json:
        print(json.dumps(made, indent=1))
    else:
        _print(made)
    if made["over_maximum_in_hours"]:
        print(f"error: maximum_replicas is too low in hours {made['over_maximum_in_hours']}", file=sys.stderr)
    return 1 if made["over_maximum_in_hours"] else 0


def _print(made: dict) -> None:
    table = Table("hour", "videos", "replicas", "utilisation", box=None)
    for hour in made["hours"]:
        table.add_row(str(hour["hour"]), shown(hour["videos"]), str(hour["replicas"]), shown(hour["utilisation"]))
    Console().print(table)
    print(f"one replica gives {made['capacity_per_replica_per_hour']:.1f} videos per hour within the SLO")
    for name, about in (("scaled", "scaling with the traffic"), ("fixed", "holding the peak")):
        cost = made[name]
        print(
            f"{about}: {cost['replica_hours']} replica hours, {cost['cost']:.2f} {made['currency']}, "
            f"{shown(cost['cost_per_video'])} {made['currency']} per video"
        )
