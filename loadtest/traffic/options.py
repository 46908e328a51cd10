"""What commands that send load share: options in, rows of the table of measurements out."""

import argparse
import contextlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from loadtest.base.inputs import ProfileError, ToolError
from loadtest.base.report import markdown, shown
from loadtest.traffic import local_stack
from loadtest.traffic.profile import Profile, load_profile
from loadtest.traffic.targets.guard import refuse_remote
from service.stack import Stack

OUT = Path("build/loadtest")
PROFILES = Path(__file__).parent / "profiles"
TABLE = "table.md"

Row = tuple[str, ...]
HEADER: Row = ("load", "videos/min", "p50", "p95", "p99", "verdict")


def add_profile_options(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """The profile (may be left out if there is a default), overrides of its fields, and where the results go."""
    shipped = ", ".join(sorted(path.stem for path in PROFILES.glob("*.yaml")))
    about = f"YAML file, or one that ships with the package: {shipped}"
    parser.add_argument("profile", nargs="?" if default else None, default=default, help=about)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a field of the profile, e.g. load.per_minute=30; may be repeated",
    )
    parser.add_argument("--url", help="override target.url")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help=f"folder of the result; {OUT}/NAME-TIME if not given"
    )
    parser.add_argument("--allow-remote", action="store_true", help="permit targets that are not this machine")


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """For commands that can start what they load."""
    group = parser.add_argument_group("start the service for this command")
    group.add_argument("--serve", action="store_true", help="start the service here, and stop it afterwards")
    local_stack.add_options(group)


@contextlib.contextmanager
def target_of(given: argparse.Namespace) -> Iterator[tuple[Profile, Stack | None]]:
    """The profile, and with --serve the service that it is aimed at, which lives as long as the block."""
    profile = read_profile(given)
    if not given.serve:
        yield profile, None
        return
    if given.url:
        raise ProfileError(f"--url is {given.url!r} and --serve starts a service of its own; allowed: one of them")
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(local_stack.serving(given.checkpoint, given.repository))
        except local_stack.Failure as error:
            raise ToolError(f"--serve: {error}") from error
        yield local_stack.aimed(profile, running), running


def read_profile(given: argparse.Namespace) -> Profile:
    """The profile that the options name, with the overrides applied and its addresses allowed."""
    shipped = PROFILES / f"{given.profile}.yaml"
    path = shipped if shipped.is_file() and not Path(given.profile).is_file() else given.profile
    overrides = [*given.overrides, *([f"target.url={given.url}"] if given.url else [])]
    profile = load_profile(path, overrides)
    for url in (profile.target.url, *profile.metrics.scrape):
        refuse_remote(url, given.allow_remote)
    return profile


def folder_of(given: argparse.Namespace, name: str) -> Path:
    """Where the results go; created."""
    folder = given.out or OUT / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def tell(rows: list[Row], folder: Path, header: Row = HEADER) -> None:
    """Print the rows as a table and leave it in the result's folder."""
    text = markdown(rows, header)
    print(text)
    (folder / TABLE).write_text(text + "\n", encoding="utf-8")


def seconds_cells(totals: dict) -> list[str]:
    """The p50, p95 and p99 of a row."""
    return [f"{shown(totals[name])} s" if totals[name] is not None else "no video" for name in ("p50", "p95", "p99")]
