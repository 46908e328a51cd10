"""`python -m loadtest COMMAND`: run, capacity, plan, compare, soak, perf-analyzer, scaling.

Exit code: 0 the verdict is met, 1 it is not, 2 the command could not be carried out.
"""

import argparse
import sys

from loadtest import cli
from loadtest.errors import LoadTestError


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    root = argparse.ArgumentParser(prog="python -m loadtest", description="Load tests of the video service.")
    chosen = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, about, module in cli.ALL:
        sub = chosen.add_parser(
            name, help=about, description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
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
    sys.exit(main())
