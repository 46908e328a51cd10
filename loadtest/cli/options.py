"""Options that every command which sends load takes."""

import argparse
from datetime import datetime
from pathlib import Path

from loadtest.profile import Profile, load_profile
from loadtest.targets.guard import refuse_remote

OUT = Path("build/loadtest")
PROFILES = Path(__file__).parent.parent / "profiles"


def add_profile_options(parser: argparse.ArgumentParser) -> None:
    """The profile, overrides of its fields, and where the results go."""
    shipped = ", ".join(sorted(path.stem for path in PROFILES.glob("*.yaml")))
    parser.add_argument("profile", help=f"YAML file, or one that ships with the package: {shipped}")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a field of the profile, e.g. load.per_minute=30; may be repeated",
    )
    parser.add_argument("--url", help="override target.url")
    parser.add_argument("--out", type=Path, help=f"folder of the result; {OUT}/NAME-TIME if not given")
    parser.add_argument("--allow-remote", action="store_true", help="permit targets that are not this machine")


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
