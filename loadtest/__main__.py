"""`python -m loadtest COMMAND`: run, capacity, plan, compare, soak, perf-analyzer, scaling, table.

Exit code: 0 the verdict is met, 1 it is not, 2 the command could not be carried out.
"""

import argparse
import signal
import sys

from loadtest import cli
from loadtest.errors import LoadTestError


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that names a default only where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    root = argparse.ArgumentParser(
        prog="python -m loadtest",
        description="Load tests of the video service.",
        epilog="Exit code: 0 the verdict is met, 1 it is not, 2 the command could not be carried out. "
        "Examples of every command: loadtest/README.md.",
    )
    chosen = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, about, module in cli.ALL:
        sub = chosen.add_parser(name, help=about, description=about, formatter_class=Help)
        module.add(sub)
        sub.set_defaults(handler=module.handle)
    return root


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors of the user's making are one sentence, not a traceback."""
    given = parser().parse_args(arguments)
    try:
        return given.handler(given)
    except LoadTestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    # What a command has started must not outlive it; by default SIGTERM would skip every clean-up.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
