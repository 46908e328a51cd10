"""`run`: one profile, its result files, and the verdict as exit code."""

import argparse

from rich.console import Console
from rich.table import Table

from loadtest.base.report import shown
from loadtest.traffic import live
from loadtest.traffic.options import (
    Row,
    add_profile_options,
    add_serve_options,
    folder_of,
    seconds_cells,
    target_of,
    tell,
)
from loadtest.traffic.record import Result
from loadtest.traffic.run_report import write_run
from loadtest.traffic.session import run_profile


def add(parser: argparse.ArgumentParser) -> None:
    add_profile_options(parser)
    add_serve_options(parser)
    parser.add_argument("--quiet", action="store_true", help="no live view")


def handle(given: argparse.Namespace) -> int:
    """Exit code 1 if the SLO is not met."""
    return 0 if carry_out(given)[1] else 1


def carry_out(given: argparse.Namespace) -> tuple[list[Row], bool]:
    """Write result.json, records.csv, report.html and table.md, and print the verdict; the table's rows, and if it is met."""
    with target_of(given) as (profile, _):
        folder = folder_of(given, profile.name)
        result = run_profile(profile, given.allow_remote, None if given.quiet else live.show)
    write_run(result, folder)
    print_run(result)
    rows = [run_row(result)]
    tell(rows, folder)
    print(f"report: {folder / 'report.html'}")
    return rows, result.verdict["ok"]


def print_run(result: Result) -> None:
    """The verdict and the figures that matter, for a terminal or a CI log."""
    figures, console = result.summary, Console(soft_wrap=True)
    seconds = Table("seconds", "mean", "p50", "p95", "p99", "max", box=None)
    for name in ("wait", "total", "accept", "overhead"):
        seconds.add_row(name, *(shown(figures[name][column]) for column in ("mean", "p50", "p95", "p99", "max")))
    console.print(seconds)
    counts = ", ".join(f"{count} {name}" for name, count in figures["outcomes"].items())
    console.print(
        f"{counts}; offered {shown(figures['offered_per_minute'])}, "
        f"completed {shown(figures['throughput_per_minute'])} videos/min; "
        f"{shown(figures['device_seconds_per_video'])} device seconds per video"
    )
    if (lag := figures["sender_lag"]["p99"]) and lag > 0.1:
        console.print(f"[yellow]the sender itself ran {lag:.2f} s late at p99: this machine limits the measurement[/]")
    for check in result.verdict["checks"]:
        mark = "[green]ok    [/]" if check["ok"] else "[red]FAILED[/]"
        measured = "no video" if check["measured"] is None else shown(check["measured"])
        console.print(f"{mark} {check['name']}: {measured} (limit {check['limit']:g})")


def run_row(result: Result) -> Row:
    """Throughput and seconds from intended arrival to video of one run."""
    figures, load = result.summary, result.profile["load"]
    rate = f", {load['per_minute']:g} a minute" if "per_minute" in load else ""
    missed = ", ".join(check["name"].partition(" (")[0] for check in result.verdict["checks"] if not check["ok"])
    return (
        f"{result.name} ({load['kind']}{rate})",
        f"{figures['throughput_per_minute']:.1f}",
        *seconds_cells(figures["total"]),
        "met" if result.verdict["ok"] else f"missed: {missed or 'no request was sent'}",
    )
