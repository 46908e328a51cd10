"""`compare`: two results side by side."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtest.compare import as_json, compare, warnings
from loadtest.record import Result
from loadtest.report import shown


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", type=Path, help="result.json or its folder")
    parser.add_argument("new", type=Path, help="result.json or its folder")
    parser.add_argument("--tolerance", type=float, default=0.05, help="relative change that does not matter")
    parser.add_argument("--json", action="store_true", help="print JSON")


def handle(given: argparse.Namespace) -> int:
    """Print every figure of both; exit code 1 if anything regressed."""
    old, new = Result.load(given.old), Result.load(given.new)
    for warning in warnings(old, new):
        print(f"warning: {warning}", file=sys.stderr)
    changes = compare(old, new, given.tolerance)
    if given.json:
        print(json.dumps(as_json(changes), indent=1))
    else:
        table = Table("figure", "old", "new", "new/old", "95 % interval", "verdict", box=None)
        for change in changes:
            table.add_row(
                change.name,
                shown(change.old),
                shown(change.new),
                shown(change.ratio),
                f"{change.low:.3f} … {change.high:.3f}",
                change.verdict,
            )
        Console(width=120).print(table)
    regressions = [change.name for change in changes if change.verdict == "regression"]
    if regressions:
        print(f"regressions: {', '.join(regressions)}", file=sys.stderr)
    return 1 if regressions else 0
