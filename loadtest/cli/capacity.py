"""`capacity`: the highest rate within the SLO, as capacity.json and report.html."""

import argparse
import asyncio
import json

from loadtest.capacity import Probe, Search, find_capacity
from loadtest.capacity_report import capacity_page, sentence
from loadtest.cli.options import add_profile_options, add_serve_options, folder_of, target_of
from loadtest.profile import Profile
from loadtest.record import Result
from loadtest.report import shown
from loadtest.session import run_once
from loadtest.table import capacity_row, tell


def add(parser: argparse.ArgumentParser) -> None:
    add_profile_options(parser)
    add_serve_options(parser)
    parser.add_argument("--low", type=float, required=True, help="videos per minute that should hold")
    parser.add_argument("--high", type=float, required=True, help="videos per minute that should fail")
    parser.add_argument("--tolerance", type=float, default=0.1, help="stop when high/low is within 1 + this")
    parser.add_argument("--confidence", type=float, default=0.9, help="how sure each answer must be")
    parser.add_argument("--runs", type=int, default=3, help="runs with fresh seeds per rate at most")


def handle(given: argparse.Namespace) -> int:
    """Print each rate as it is tried; exit code 1 if not even --low holds."""
    search = Search(given.low, given.high, given.tolerance, given.confidence, given.runs)
    with target_of(given) as (profile, _):
        folder = folder_of(given, f"capacity-{profile.name}")
        found = asyncio.run(find_capacity(profile, search, _quietly, _tell))
    (folder / "capacity.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    (folder / "report.html").write_text(capacity_page(found), encoding="utf-8")
    print(sentence(found))
    tell([capacity_row(found)], folder)
    print(f"report: {folder / 'report.html'}")
    return 0 if found["capacity_per_minute"] else 1


async def _quietly(profile: Profile) -> Result:
    return await run_once(profile, quiet=True)


def _tell(probe: Probe) -> None:
    word = {True: "holds", False: "fails", None: "unsure"}[probe.holds]
    print(
        f"{probe.per_minute:8.2f}/min  {word:6}  P(SLO holds) {probe.probability:.2f}  {probe.requests} requests  "
        f"total p95 {shown(probe.total['p95'])} s{'  queue grows' if probe.growing else ''}",
        flush=True,
    )
