"""`python -m service.worker.drain`: let a worker finish or hand over its jobs before its pod is stopped.

Meant as the preStop command of the worker's container. The worker's signals do the work (see `service.worker`): the first
SIGTERM stops leasing, the second hands the running jobs over, each with the checkpoint of the step it is in. This program
decides when to send the second one: at once when no running job can end within the budget, at the end of the budget otherwise.
"""

import argparse
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from service.worker import run_directories

logger = logging.getLogger("service.worker.drain")
POLL_SECONDS = 0.1
SIGNAL_SECONDS = 1.0  # two signals in quick succession would arrive as one


@dataclass(frozen=True)
class Drain:
    """How to stop one worker; times in seconds."""

    run_dir: Path
    pid: int
    budget: float  # all the time there is
    handover: float  # kept at the end of it for checkpoints on their way to the store
    finish: float  # from the last denoise step to the stored video

    def run(self) -> bool:
        """Drain and return True when nothing is in flight any more, False when the budget ended first."""
        deadline = time.monotonic() + self.budget
        last_call = deadline - self.handover
        if not self._signal():
            logger.info("worker %d is already gone", self.pid)
            return True
        hurry_at = time.monotonic() + SIGNAL_SECONDS
        while time.monotonic() < deadline:
            left = in_flight(self.run_dir)
            if not left or not _alive(self.pid):
                logger.info("drained")
                return True
            if time.monotonic() >= hurry_at and not any(self._fits(run, last_call) for run in left):
                hurry_at += SIGNAL_SECONDS
                logger.info("handing over %d jobs that do not fit into the budget", len(left))
                self._signal()
            time.sleep(POLL_SECONDS)
        logger.warning("budget of %g s is over with %d jobs in flight", self.budget, len(left))
        return False

    def _fits(self, run: run_directories.Run, last_call: float) -> bool:
        left = last_call - time.monotonic()
        progress = run.progress()
        if progress.get("phase", "denoise") != "denoise":
            return left > 0
        eta = progress.get("eta_seconds")
        # A job that has not begun to count is given up only with the budget: it may be a short one.
        return left > 0 if eta is None else eta + self.finish <= left

    def _signal(self) -> bool:
        try:
            os.kill(self.pid, signal.SIGTERM)
        except ProcessLookupError:
            return False
        return True


def in_flight(run_dir: Path) -> list[run_directories.Run]:
    """Attempts that run: an attempt that ended removes its directory, or leaves it marked with a cancel and a checkpoint."""
    return [run for _, _, run in run_directories.attempts(run_dir) if not _handed_over(run)]


def _handed_over(run: run_directories.Run) -> bool:
    return (run.path / "cancel").exists() and run_directories.quiet_for(run) > 1.0


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A worker that has exited stays a zombie until its parent looks; a container's first process never does.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m service.worker.drain", description=__doc__.split("\n")[0])
    parser.add_argument("--run-dir", type=Path, required=True, help="the WAN_RUN_DIR of the worker")
    parser.add_argument("--budget", type=float, required=True, help="seconds that this command may take")
    parser.add_argument(
        "--pid", type=int, default=1, help="process id of the worker (default: the container's first process)"
    )
    parser.add_argument(
        "--handover", type=float, help="seconds kept for the hand-over (default: 20, a quarter of a short budget)"
    )
    parser.add_argument(
        "--finish", type=float, default=20, help="seconds from the last denoise step to the stored video"
    )
    options = parser.parse_args(arguments)
    if not 0 < options.budget <= 86_400:
        parser.error(f"--budget is {options.budget:g}; allowed: above 0, up to 86400 seconds")
    if options.handover is None:
        options.handover = min(20.0, options.budget / 4)
    if not 0 <= options.handover < options.budget:
        parser.error(
            f"--handover is {options.handover:g}; allowed: from 0 to below --budget, which is {options.budget:g}"
        )
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    drained = Drain(options.run_dir, options.pid, options.budget, options.handover, options.finish).run()
    return 0 if drained else 1


if __name__ == "__main__":
    sys.exit(main())
