"""`perf-analyzer`: NVIDIA's tool beside ours."""

import argparse
import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from loadtest.cli.options import add_profile_options, add_serve_options, folder_of, target_of
from loadtest.perf_analyzer import disagreement, measure_all


def add(parser: argparse.ArgumentParser) -> None:
    add_profile_options(parser)
    add_serve_options(parser)
    parser.add_argument("--no-stages", action="store_true", help="the ensemble only")
    parser.add_argument("--tolerance", type=float, default=0.1, help="how far the two tools' means may be apart")


def handle(given: argparse.Namespace) -> int:
    """Print both tools' figures; exit code 1 if they disagree."""
    with target_of(given) as (profile, _):
        folder = folder_of(given, f"perf-{profile.name}")
        found = measure_all(profile, folder, given.allow_remote, not given.no_stages)
    (folder / "perf.json").write_text(json.dumps([asdict(one) for one in found], indent=1), encoding="utf-8")
    table = Table("model", "tool", "requests", "mean (s)", "p50 (s)", "p95 (s)", "per minute", box=None)
    for one in found:
        table.add_row(
            one.model,
            one.tool,
            str(one.requests),
            *(f"{v:.4f}" for v in (one.mean, one.p50, one.p95)),
            f"{one.per_minute:.1f}",
        )
    Console().print(table)
    apart = disagreement(found, profile.target.model)
    print(f"perf_analyzer's mean on {profile.target.model} is {apart:+.1%} against ours; files: {folder}")
    return 0 if abs(apart) <= given.tolerance else 1
