"""From a measured capacity and a traffic forecast to replicas and cost."""

import argparse
import csv
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field
from rich.console import Console
from rich.table import Table

from loadtest.base.inputs import ProfileError, Strict, parse, read_yaml
from loadtest.base.report import shown


class Forecast(Strict):
    """Traffic and prices. `videos_per_hour` has one entry per hour (24, 168, …); or `csv` names such a file.

    peak_factor: busiest minute of an hour over its mean. spare: replicas kept in excess, for one that fails or drains.
    """

    name: str = "forecast"
    videos_per_hour: tuple[Annotated[float, Field(ge=0)], ...] = ()
    csv: str | None = None
    peak_factor: Annotated[float, Field(ge=1, le=100)] = 1.5
    growth: Annotated[float, Field(gt=0, le=1000)] = 1.0
    minimum_replicas: Annotated[int, Field(ge=0)] = 1
    maximum_replicas: Annotated[int, Field(ge=1)] | None = None
    spare: Annotated[int, Field(ge=0)] = 1
    gpus_per_replica: Annotated[int, Field(ge=0)] = 1
    cost_per_gpu_hour: Annotated[float, Field(ge=0)]
    cost_per_replica_hour: Annotated[float, Field(ge=0)] = 0
    scale_ahead_hours: Annotated[int, Field(ge=0, le=24)] = 1
    currency: str = "USD"


def load_forecast(path: str | Path) -> Forecast:
    """Read a forecast; its hours come from the file itself or from the CSV beside it."""
    forecast = parse(Forecast, read_yaml(path), str(path))
    if forecast.csv:
        forecast = forecast.model_copy(update={"videos_per_hour": _hours(Path(path).parent / forecast.csv)})
    if not forecast.videos_per_hour:
        raise ProfileError(f"{path}: videos_per_hour is empty; allowed: one number per hour, or csv: FILE")
    return forecast


def _hours(path: Path) -> tuple[float, ...]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            hours = tuple(float(row["videos_per_hour"]) for row in csv.DictReader(file))
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ProfileError(f"{path}: needs a column videos_per_hour of numbers: {error!r}") from error
    if any(not math.isfinite(hour) or hour < 0 for hour in hours):
        raise ProfileError(f"{path}: videos_per_hour must be finite and not negative")
    return hours


def load_capacity(path: str | Path) -> dict:
    """Read the result of a capacity search that found a rate."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data["format"] != "wan-loadtest-capacity/1":
            raise ValueError(f"format is {data['format']!r}")
        capacity = data["capacity_per_minute"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProfileError(f"{path}: not the result of `python -m loadtest capacity`: {error}") from error
    if not capacity:
        raise ProfileError(f"{path}: no rate met the SLO, so no number of replicas can be computed from it")
    return data


def plan(capacity_per_minute: float, measured_replicas: int, forecast: Forecast) -> dict:
    """Replicas of each hour and the cost of scaling with the traffic against holding the peak.

    Capacity is taken as proportional to replicas. That is cautious: a shared queue before several servers waits
    less than one queue before each (pooling), so the true need is at most this.
    """
    per_replica = capacity_per_minute / measured_replicas * 60
    needed = [_replicas(hour, per_replica, forecast) for hour in forecast.videos_per_hour]
    ahead = forecast.scale_ahead_hours
    count = len(needed)  # the forecast is taken as periodic: the hour after the last is the first
    held = [max(needed[(hour + k) % count] for k in range(ahead + 1)) for hour in range(count)]
    limit = forecast.maximum_replicas
    short = [hour for hour, replicas in enumerate(needed) if limit is not None and replicas > limit]
    held = [min(replicas, limit) if limit is not None else replicas for replicas in held]
    return {
        "capacity_per_replica_per_hour": per_replica,
        "hours": [
            {
                "hour": hour,
                "videos": videos * forecast.growth,
                "replicas": replicas,
                "utilisation": videos * forecast.growth / (replicas * per_replica) if replicas else None,
            }
            for hour, (videos, replicas) in enumerate(zip(forecast.videos_per_hour, held, strict=True))
        ],
        "over_maximum_in_hours": short,
        "peak_replicas": max(held),
        "scaled": _cost(held, forecast),
        "fixed": _cost([max(held)] * count, forecast),
        "currency": forecast.currency,
    }


def _replicas(videos: float, per_replica: float, forecast: Forecast) -> int:
    peak = videos * forecast.growth * forecast.peak_factor
    if peak == 0:
        return forecast.minimum_replicas
    return max(forecast.minimum_replicas, math.ceil(peak / per_replica - 1e-9) + forecast.spare)


def _cost(replicas: Sequence[int], forecast: Forecast) -> dict:
    """Replica hours and money over the forecast's span."""
    hours = sum(replicas)
    price = forecast.gpus_per_replica * forecast.cost_per_gpu_hour + forecast.cost_per_replica_hour
    videos = sum(forecast.videos_per_hour) * forecast.growth
    return {
        "replica_hours": hours,
        "gpu_hours": hours * forecast.gpus_per_replica,
        "cost": hours * price,
        "cost_per_video": hours * price / videos if videos else None,
    }


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
