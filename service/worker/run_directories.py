"""Run directories from the worker's side: progress and checkpoints out of the denoise stage, cancel into it.

Each attempt has its own directory, `$WAN_RUN_DIR/<job id>-<fence>/`. An attempt that lost its worker shares no file with the one
that follows it; whoever finds its directory asks it to stop, keeps its checkpoint if that is the newest, and removes it.
"""

import contextlib
import json
import os
import re
import shutil
import time
from pathlib import Path

BROKEN = "broken"
ATTEMPT = re.compile(r"(video_[0-9a-f]{32})-(\d+)")


NUMBERS = {"step": int, "steps": int, "skipped": int, "step_seconds": float, "eta_seconds": float}
PHASES = ("denoise", "decode")


class Run:
    """The directory of one attempt."""

    def __init__(self, root: Path, request_id: str):
        self.path = root / request_id
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.preview = self.path / "preview.webp"
        self.frames = self.path / "frames.rgb"  # raw, of a request that says `stream`, as they are decoded

    def create(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def progress(self) -> dict:
        """What the stages reported last, as far as it makes sense; empty before they did."""
        try:
            report = json.loads((self.path / "progress.json").read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(report, dict):
            return {}
        known = {name: kind(report[name]) for name, kind in NUMBERS.items() if _is_count(report.get(name))}
        return known | ({"phase": report["phase"]} if report.get("phase") in PHASES else {})

    def cancel(self) -> None:
        """Stop the loop before its next step. On a full disk nothing is written; say it again then."""
        mark = self.path / "cancel"
        if self.path.is_dir() and not mark.exists():
            with contextlib.suppress(OSError):
                mark.touch()

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _is_count(value) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1e9


def checkpoint_step(path: Path) -> int | None:
    """The step a checkpoint was made at, from the header of the safetensors file; None when there is none to read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length < 1 << 20:
                return None
            return int(json.loads(file.read(length))["__metadata__"]["step"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def attempts(root: Path) -> list[tuple[str, int, Run]]:
    """All attempts that left a directory: (job id, fence, run)."""
    found = []
    for path in root.iterdir() if root.is_dir() else ():
        if match := ATTEMPT.fullmatch(path.name):
            found.append((match[1], int(match[2]), Run(root, path.name)))
    return found


def best_local_checkpoint(root: Path, job_id: str) -> tuple[Path, int] | None:
    """The newest checkpoint that any earlier attempt of the job left on this machine."""
    steps = [(checkpoint_step(run.checkpoint), run.checkpoint) for job, _, run in attempts(root) if job == job_id]
    known = [(step, path) for step, path in steps if step is not None]
    if not known:
        return None
    step, path = max(known)
    return path, step


def quiet_for(run: Run) -> float:
    """Seconds since anything in the directory changed."""
    try:
        newest = max((entry.stat().st_mtime for entry in run.path.iterdir()), default=run.path.stat().st_mtime)
    except OSError:
        return 0.0
    return time.time() - newest


def mark_broken(root: Path) -> None:
    """Tell whoever looks after Triton (launcher, liveness probe) that it must be restarted."""
    with contextlib.suppress(OSError):
        (root / BROKEN).touch()


def broken_since(root: Path) -> float | None:
    """When Triton was said to be broken (seconds since the epoch); None when it was not."""
    try:
        return (root / BROKEN).stat().st_mtime
    except OSError:
        return None


def clear_broken(root: Path) -> None:
    (root / BROKEN).unlink(missing_ok=True)


def try_out(root: Path) -> None:
    """OSError when a megabyte cannot be written."""
    path = root / f".try-out-{os.getpid()}"
    try:
        path.write_bytes(bytes(1 << 20))
    finally:
        path.unlink(missing_ok=True)
