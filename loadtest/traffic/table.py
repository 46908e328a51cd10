"""`table`: every measurement of the README, one after the other, as one Markdown table."""

import argparse
import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from loadtest.base.databases import Postgres, find_binaries
from loadtest.base.inputs import LoadTestError
from loadtest.traffic import capacity, run, scaling
from loadtest.traffic.options import HEADER, Row, folder_of, tell

COMMANDS = {"run": run, "capacity": capacity, "scaling": scaling}
SHORT = "limits={requests: 100, seconds: 30, drain_seconds: 30}"
CAPACITY = ("--low", "10", "--high", "200", "--tolerance", "0.2", "--runs", "1", "--set", SHORT)
PARTS: dict[str, tuple[str, ...]] = {
    "steady": ("run", "steady", "--serve", "--quiet"),
    "triton-grpc": ("run", "triton-grpc", "--serve", "--quiet"),
    "triton-http": ("run", "triton-http", "--serve", "--quiet"),
    "capacity": ("capacity", "steady", "--serve", *CAPACITY),
    "workers": ("scaling", "saturate", "--only", "workers", "--workers", "1,2"),
    "sqlite": ("scaling", "saturate", "--only", "queue"),
    "postgresql": ("scaling", "saturate", "--only", "queue", "--database-url"),
}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of: {', '.join(PARTS)}; all if not given")
    parser.add_argument(
        "--database-url",
        metavar="URL",
        help="empty PostgreSQL database; if not given, a server is started where one is installed",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder of the results; build/loadtest/table-TIME if not given"
    )


def handle(given: argparse.Namespace) -> int:
    """Write table.md; exit code 1 if any part missed its goal, 2 if one could not be carried out."""
    if unknown := set(given.parts) - set(PARTS):
        print(f"error: PART is {sorted(unknown)[0]!r}; allowed: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    folder = folder_of(given, "table")
    rows, codes = [], [0]
    for part in given.parts or PARTS:
        with _complete(part, given.database_url) as command:
            if command is None:
                print("postgresql: left out, no server is installed; --database-url names one", file=sys.stderr)
                continue
            found, code = _measure(command, folder / part)
        shown = shlex.join(word for word in command if word != "--quiet" and "://" not in word)
        rows += [(*row, f"`python -m loadtest {shown}`") for row in found]
        codes.append(code)
    print()
    tell(rows, folder, (*HEADER, "command"))
    return max(codes)


@contextlib.contextmanager
def _complete(part: str, database_url: str | None) -> Iterator[tuple[str, ...] | None]:
    """The command of a part, with a database while the block lasts; None if there is none to be had."""
    command = PARTS[part]
    if part != "postgresql":
        yield command
    elif database_url:
        yield (*command, database_url)
    elif find_binaries() is None:
        yield None
    else:
        server = Postgres()
        try:
            yield (*command, server.url())
        finally:
            server.stop()


def _measure(words: tuple[str, ...], folder: Path) -> tuple[list[Row], int]:
    """Carry out one command; its rows and exit code."""
    print(f"\npython -m loadtest {shlex.join(words)}", flush=True)
    try:
        rows, ok = COMMANDS[words[0]].carry_out(parsed((*words, "--out", str(folder))))
    except Exception as error:  # one part that breaks must not cost the rows of the others
        print(f"error: {error if isinstance(error, LoadTestError) else repr(error)}", file=sys.stderr)
        return [(f"{words[0]} {words[1]}", "–", "–", "–", "–", "could not be carried out")], 2
    return rows, 0 if ok else 1


def parsed(words: tuple[str, ...]) -> argparse.Namespace:
    """The options of a command as its own command line reads them."""
    parser = argparse.ArgumentParser(prog=f"python -m loadtest {words[0]}")
    COMMANDS[words[0]].add(parser)
    return parser.parse_args(words[1:])
