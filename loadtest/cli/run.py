"""`run`: one profile, its result files, and the verdict as exit code."""

import argparse

from rich.console import Console
from rich.table import Table

from loadtest.cli.options import add_profile_options, add_serve_options, folder_of, target_of
from loadtest.record import Result
from loadtest.report import shown, write_run
from loadtest.session import run_profile
from loadtest.table import run_row, tell


def add(parser: argparse.ArgumentParser) -> None:
    add_profile_options(parser)
    add_serve_options(parser)
    parser.add_argument("--quiet", action="store_true", help="no live view")


def handle(given: argparse.Namespace) -> int:
    """Write result.json, records.csv, report.html and table.md, and print the verdict."""
    with target_of(given) as (profile, _):
        folder = folder_of(given, profile.name)
        result = run_profile(profile, given.allow_remote, quiet=given.quiet)
    write_run(result, folder)
    print_run(result)
    tell([run_row(result)], folder)
    print(f"report: {folder / 'report.html'}")
    return 0 if result.verdict["ok"] else 1


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
