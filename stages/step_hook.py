"""One request in the denoise loop: after each step it reports, looks for a cancel, and now and then saves a checkpoint."""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from contract.parameters import GenerationRequest
from stages.device import NotFinite
from stages.metrics import DenoiseMetrics
from stages.preview import PreviewProjection
from stages.run_directory import CheckpointDamaged, RunDirectory, StepCheckpoint
from wan.denoise import Plan, Progress, Resume
from wan.errors import Cancelled
from wan.samplers import SamplerState

CHECKPOINT_SHARE = 0.01  # of the loop's time; where writing takes more, checkpoints come less often,
LONGEST_PAUSE = 4  # but at least every so many intervals
RECENT_STEPS = 5  # of a kind; their mean follows a machine that others slow down
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Intervals:
    """Least seconds between two writes of a kind."""

    checkpoint: float
    preview: float


class TimeLeft:
    """Seconds that the rest of a plan will take, from the steps that were timed.

    Steps differ in kind: computed or skipped, with one branch or, while guidance is on, with two.
    """

    def __init__(self, plan: Plan):
        self._kinds = [(step.computed, step.branches) for step in plan]
        self._seconds: dict[tuple[bool, int], deque[float]] = defaultdict(lambda: deque(maxlen=RECENT_STEPS))

    def took(self, step: int, seconds: float) -> None:
        """Note the duration of `step`, counted from 0."""
        self._seconds[self._kinds[step]].append(seconds)

    def after(self, step: int) -> float | None:
        """Seconds from the moment when `step` steps are done; None before a computed step was timed."""
        if not any(computed for computed, _ in self._seconds):
            return None
        return sum(map(self._expected, self._kinds[step:]))

    def _expected(self, kind: tuple[bool, int]) -> float:
        computed, branches = kind
        if recent := self._seconds.get(kind):
            return sum(recent) / len(recent)
        if other := self._seconds.get((computed, 3 - branches)):
            return sum(other) / len(other) * branches / (3 - branches)
        return 0.0  # skipped steps hardly count until one was seen


class StepHook:
    """The `on_step` of one request, whose `plan` says what each step does and whose checkpoints bear its `fingerprint`.

    `gone()` says that the caller no longer waits. Without a directory there is nothing to report to.
    """

    def __init__(
        self,
        request: GenerationRequest,
        plan: Plan,
        fingerprint: str,
        directory: RunDirectory | None,
        intervals: Intervals,
        metrics: DenoiseMetrics,
        preview: PreviewProjection | None = None,
        gone: Callable[[], bool] = lambda: False,
    ):
        self.directory, self.metrics = directory, metrics
        self.refused: str | None = None  # why a checkpoint that was there is not used
        self._gone = gone
        self._request, self._intervals, self._preview = request, intervals, preview
        self._fingerprint, self._steps = fingerprint, len(plan)
        self._first_step = 0
        self._time_left = TimeLeft(plan)
        self._last_checkpoint = self._last_preview = time.monotonic()
        self._checkpoint_pause = intervals.checkpoint

    def resume_point(self) -> Resume | None:
        """Where an earlier run of this request was stopped; raises CheckpointRefused if the file is of another request."""
        checkpoint = self._sound_checkpoint(self.directory) if self.directory else None
        if checkpoint is None:
            return None
        self._first_step = checkpoint.step
        self.metrics.resumed(checkpoint.step)
        return Resume(checkpoint.step, SamplerState.from_tensors(checkpoint.state))

    def _sound_checkpoint(self, directory: RunDirectory) -> StepCheckpoint | None:
        """A damaged checkpoint costs the steps it held, not the request; it is removed, so that nobody keeps it."""
        try:
            return directory.load_checkpoint(self._fingerprint)
        except CheckpointDamaged as error:
            self.refused = str(error)
            logger.warning("request %s starts over: %s", directory.path.name, error)
            directory.remove_checkpoint()
            return None

    def begin(self) -> None:
        """Before the first step: the request is seen to run, and a cancel that came while it waited counts."""
        self.metrics.started(time.time())
        if self.directory:
            self._write_progress(self.directory, self._first_step, self._steps, 0, 0.0)
        if self._cancelled():
            self._stop(self._first_step)

    def __call__(self, progress: Progress) -> None:
        self.metrics.stepped("computed" if progress.computed else "cached", progress.seconds, time.time())
        self._time_left.took(progress.step - 1, progress.seconds)
        if not torch.isfinite(progress.state.latents).all():  # before a checkpoint keeps them
            raise NotFinite(f"the latents are NaN or infinite after step {progress.step} of {progress.steps}")
        cancelled = progress.step < progress.steps and self._cancelled()
        if self.directory:
            self._write_progress(self.directory, progress.step, progress.steps, progress.skipped, progress.seconds)
            # A worker that must leave its machine also cancels: what was done until now should not be lost.
            self._save_checkpoint(self.directory, progress, at_once=cancelled)
            self._save_preview(self.directory, progress)
        if cancelled:
            self._stop(progress.step)

    def _cancelled(self) -> bool:
        return (self.directory is not None and self.directory.cancelled()) or self._gone()

    def _write_progress(self, directory: RunDirectory, step: int, steps: int, skipped: int, seconds: float) -> None:
        left = self._time_left.after(step)
        directory.write_progress(
            {
                "step": step,
                "steps": steps,
                "skipped": skipped,
                "step_seconds": round(seconds, 4),
                "eta_seconds": None if left is None else round(left, 3),
                "phase": "denoise",
            }
        )

    def _save_checkpoint(self, directory: RunDirectory, progress: Progress, at_once: bool) -> None:
        due = time.monotonic() - self._last_checkpoint >= self._checkpoint_pause
        if progress.resumable and (due or at_once):
            checkpoint = StepCheckpoint(progress.step, self._request.seed, progress.state.tensors())
            began = time.monotonic()
            directory.save_checkpoint(checkpoint, self._fingerprint)
            self._last_checkpoint = time.monotonic()
            interval = self._intervals.checkpoint
            on_a_slow_disk = (self._last_checkpoint - began) / CHECKPOINT_SHARE
            self._checkpoint_pause = min(max(interval, on_a_slow_disk), LONGEST_PAUSE * interval)

    def _save_preview(self, directory: RunDirectory, progress: Progress) -> None:
        due = time.monotonic() - self._last_preview >= self._intervals.preview
        preview = self._preview
        if preview and (due or progress.step == progress.steps):
            x0 = progress.x0.float().cpu().numpy()
            directory.replace("preview.webp", lambda path: preview.write(x0, path))
            self._last_preview = time.monotonic()

    def _stop(self, step: int) -> None:
        raise Cancelled(f"cancelled after step {step} of {self._steps}")
