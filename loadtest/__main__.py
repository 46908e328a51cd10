"""`python -m loadtest COMMAND`: one program for every measurement of this project.

Exit code: 0 the verdict is met, 1 it is not, 2 the command could not be carried out.
"""

import argparse
import importlib
import signal
import sys

from loadtest.base.inputs import LoadTestError

# Command -> (its module, which has `add(parser)` and `handle(given) -> exit code`; what it does). Only the module of the
# command that is asked for is imported: a light one does not wait for torch.
COMMANDS = {
    "run": ("traffic.run", "Run a load profile; exit code 1 if its SLO is not met."),
    "capacity": ("traffic.capacity", "Find the highest arrival rate that meets the SLO."),
    "compare": ("traffic.compare", "Compare two results; exit code 1 on a regression."),
    "soak": ("traffic.soak", "Hold a load for a long time and name what leaks."),
    "perf-analyzer": (
        "traffic.perf_analyzer",
        "NVIDIA's perf_analyzer on the ensemble and its stages, beside our client.",
    ),
    "mlperf": ("traffic.mlperf.command", "MLPerf's LoadGen against the service or the bare ensemble; its verdict."),
    "scaling": ("traffic.scaling", "Throughput with 1, 2, … workers; cost of a job against the length of the queue."),
    "table": ("traffic.table", "Run the measurements of the README, and print them as one Markdown table."),
    "serve": (
        "traffic.local_stack",
        "The whole service with a number of workers until Ctrl-C, to be loaded by others.",
    ),
    "bench": ("bench.command", "The model's parts beside diffusers, then one option after the other."),
    "lora": ("bench.lora", "What adapters beside the weights cost a forward of the DiT; exit code 1 above the limit."),
    "gpu": ("bench.gpu", "Is a GPU's arithmetic right, and how near its limit is it? No weights needed."),
    "quality": ("quality.command", "What sets of options cost in quality and bring in speed."),
    "faults": ("drills.faults", "Kill each part of the service at points of a job's life: is anything lost?"),
    "drills": ("drills.storm", "Faults of all kinds at random moments, repeated by a seed: lost, doubled, wrong?"),
    "preemption": ("drills.preemption", "Urgent jobs in the place of running ones: how long they wait, what it costs."),
    "cancel": ("drills.cancel", "How fast a cancel frees the denoise stage."),
    "fairness": ("drills.fairness", "Many clients at once: each job once, in order, equal shares?"),
    "gateway": (
        "drills.gateway",
        "Status reads beside submissions, and memory over many jobs, of one gateway process.",
    ),
    "checkpoint-cost": ("drills.checkpoint_cost", "The share of the denoise loop that checkpoints take."),
    "overhead": ("drills.overhead", "The ensemble over gRPC against the pipeline in process."),
    "simulate": ("fleet.simulate", "Compare scaling rules on a simulated fleet."),
    "frontier": ("fleet.frontier", "Cost of every scaling rule at equal wait, paired over seeds."),
    "deadlines": (
        "fleet.deadlines",
        "Deadlines met by orders of the queue, preemption and GPUs by job, at equal cost.",
    ),
    "plan": ("fleet.plan", "Turn a capacity and a traffic forecast into replicas and cost."),
}


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that names a default only where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)


def parser(wanted: str | None) -> argparse.ArgumentParser:
    """All commands, and the options of the wanted one."""
    root = argparse.ArgumentParser(
        prog="python -m loadtest",
        description="Measurements of the video service.",
        epilog="Exit code: 0 the verdict is met, 1 it is not, 2 the command could not be carried out. "
        "Examples of every command: loadtest/README.md.",
    )
    chosen = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, about) in COMMANDS.items():
        sub = chosen.add_parser(name, help=about, description=about, formatter_class=Help)
        if name == wanted:
            command = importlib.import_module(f"loadtest.{module}")
            command.add(sub)
            sub.set_defaults(handler=command.handle)
    return root


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors of the user's making are one sentence, not a traceback."""
    words = sys.argv[1:] if arguments is None else arguments
    given = parser(next(iter(words), None)).parse_args(words)
    try:
        return given.handler(given)
    except LoadTestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    # What a command has started must not outlive it; by default SIGTERM would skip every clean-up.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
