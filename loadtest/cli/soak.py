"""`soak`: a load for an hour (or minutes), and the names of what leaks."""

import argparse
import asyncio
import json
from pathlib import Path

import psutil

from loadtest.cli.options import add_profile_options, add_serve_options, folder_of, target_of
from loadtest.probe import Watch, find_roots
from loadtest.profile import Profile
from loadtest.report import write_run
from loadtest.soak import as_json, default_database, findings, soak, soak_page, verdict
from service.stack import Stack


def add(parser: argparse.ArgumentParser) -> None:
    add_profile_options(parser)
    add_serve_options(parser)
    parser.add_argument("--minutes", type=float, default=60, help="how long")
    parser.add_argument(
        "--pid",
        type=int,
        action="append",
        default=[],
        help="process to watch with all its children; may be repeated; not given: who owns the port",
    )
    parser.add_argument(
        "--state-dir", type=Path, metavar="FOLDER", help="the service's WAN_STATE_DIR: its run directories and database"
    )
    parser.add_argument("--run-dir", type=Path, metavar="FOLDER", help="run directories, if not STATE_DIR/run")
    parser.add_argument("--database", help="SQLite file or postgresql:// URL, if not STATE_DIR/jobs.db")
    parser.add_argument("--every", type=float, metavar="SECONDS", default=5, help="seconds between samples")
    parser.add_argument("--quiet", action="store_true", help="no live view")


def handle(given: argparse.Namespace) -> int:
    """Write soak.json, soak.html and the run's own files; exit code 1 if anything leaks or the SLO is not met."""
    given.overrides += [f"limits.seconds={given.minutes * 60}", "limits.requests=1000000"]
    with target_of(given) as (profile, running):
        folder = folder_of(given, f"soak-{profile.name}")
        watch = watch_of(given, profile, running)
        print("watching:", ", ".join(f"{process.name()} ({process.pid}) and its children" for process in watch.roots))
        if watch.missing:
            print(f"not watched: {', '.join(watch.missing)}; --state-dir tells where they are")
        result = asyncio.run(soak(profile, watch, given.every, given.quiet))
    found = findings(watch)
    ok, problems = verdict(watch, found, result)
    write_run(result, folder)
    (folder / "soak.json").write_text(json.dumps(as_json(watch, found, ok, problems)), encoding="utf-8")
    (folder / "soak.html").write_text(soak_page(watch, found, result, problems), encoding="utf-8")
    for problem in problems:
        print(problem)
    for finding in found:
        print(f"{finding.word:14}  {finding}")
    print(f"{'flat' if ok else 'NOT FLAT'}: {len(found)} series, report: {folder / 'soak.html'}")
    return 0 if ok else 1


def watch_of(given: argparse.Namespace, profile: Profile, running: Stack | None) -> Watch:
    """What to look at: everything of the service that was started for this run, or what the options name."""
    if running:
        return Watch(psutil.Process().children(), running.state / "run", default_database(running.state))
    run_dir = given.run_dir or (given.state_dir / "run" if given.state_dir else None)
    database = given.database or default_database(given.state_dir)
    return Watch(find_roots(given.pid, profile.target.url), run_dir, database)
