"""How many deadlines does an order of the queue meet? `python -m loadtest deadlines`: one node of eight GPUs, the same for every order."""

import argparse
import json
import math
from pathlib import Path

import numpy as np

from loadtest.base.inputs import number
from loadtest.fleet.mix import DEFAULT_MIX, parse_mix
from loadtest.fleet.queues import ORDERS, Node, attained, draw

# name -> shape of the arrivals, share of the GPUs that they keep busy
CASES = {
    "60 % busy": ("poisson", 0.6),
    "80 % busy": ("poisson", 0.8),
    "95 % busy": ("poisson", 0.95),
    "80 % busy, half of it in bursts": ("bursts", 0.8),
}


def compare(mix: str, scale: float, jobs: int, seeds: int, switch: float) -> dict:
    """Case -> order -> share of the deadlines met, how much more than first come first served, its 95 % interval, GPU-hours."""
    kinds, found = parse_mix(mix), {}
    for case, (shape, load) in CASES.items():
        rows: dict[str, list[tuple[float, float]]] = {name: [] for name in ORDERS}
        for seed in range(seeds):
            for name, order in ORDERS.items():
                node = Node(order, switch=switch)
                met = attained(node.run(draw(kinds, shape, load, scale, jobs, seed)))
                rows[name].append((met, node.busy / 3600))
        found[case] = _summary(rows)
    return found


def _summary(rows: dict[str, list[tuple[float, float]]]) -> dict:
    base = np.array(next(iter(rows.values())))[:, 0]
    found = {}
    for name, runs in rows.items():
        met, hours = np.array(runs).T
        more = met - base
        spread = 1.96 * more.std(ddof=1) / math.sqrt(len(more)) if len(more) > 1 else math.nan
        found[name] = {"met": met.mean(), "more": more.mean(), "interval": spread, "gpu_hours": hours.mean()}
    return found


def table(found: dict) -> str:
    """As Markdown, one line an order."""
    lines = ["| order | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for name in ORDERS:
        cells = [
            "{:.0f} % ({:+.0f} ± {:.0f})".format(*(100 * row[name][k] for k in ("met", "more", "interval")))
            for row in found.values()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mix", default=DEFAULT_MIX, help="NAME:SHARE:GPU_SECONDS,…")
    parser.add_argument(
        "--scale",
        type=number(0.1, 1000),
        default=2.0,
        help="a job is due so many times its time on one GPU after it came",
    )
    parser.add_argument("--jobs", type=number(1, 100_000, int), default=800)
    parser.add_argument("--seeds", type=number(1, 1000, int), default=12)
    parser.add_argument(
        "--switch", type=number(0, 3600), default=5.0, help="seconds to go on after a stop, or on other GPUs"
    )
    parser.add_argument("--out", type=Path, default=Path("build/deadlines.json"))


def handle(options: argparse.Namespace) -> int:
    found = compare(options.mix, options.scale, options.jobs, options.seeds, options.switch)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    return 0
