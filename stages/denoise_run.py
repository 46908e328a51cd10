"""One request in the denoise loop: after each step it reports, looks for a cancel, and now and then saves a checkpoint."""

import hashlib
import json
import time
from dataclasses import asdict, dataclass

from stages.metrics import DenoiseMetrics
from stages.preview import PreviewProjection
from stages.rundir import RunDirectory, StepCheckpoint
from wan.denoise import Progress, Resume
from wan.errors import Cancelled
from wan.request import GenerationRequest
from wan.samplers import SamplerState


def fingerprint(request: GenerationRequest, model: str) -> str:
    """What a checkpoint belongs to: every parameter, both prompts and the seed, and the checkpoint hash of the model."""
    text = json.dumps(asdict(request) | {"model": model}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Intervals:
    """Least seconds between two writes of a kind."""

    checkpoint: float
    preview: float


class DenoiseRun:
    """The `on_step` of one request. Without a directory only the metrics are kept."""

    def __init__(
        self,
        request: GenerationRequest,
        model: str,
        directory: RunDirectory | None,
        intervals: Intervals,
        metrics: DenoiseMetrics,
        preview: PreviewProjection | None = None,
    ):
        self.directory, self.metrics = directory, metrics
        self._request, self._intervals, self._preview = request, intervals, preview
        self._fingerprint = fingerprint(request, model)
        self._first_step = 0
        self._computed_seconds: list[float] = []
        self._last_checkpoint = self._last_preview = time.monotonic()

    def resume_point(self) -> Resume | None:
        """Where an earlier run of this request was stopped; raises CheckpointRefused if the file is of another request."""
        checkpoint = self.directory.load_checkpoint(self._fingerprint) if self.directory else None
        if checkpoint is None:
            return None
        self._first_step = checkpoint.step
        self.metrics.resumed(checkpoint.step)
        return Resume(checkpoint.step, SamplerState.from_tensors(checkpoint.state))

    def begin(self) -> None:
        """Before the first step: the request is seen to run, and a cancel that came while it waited counts."""
        self.metrics.started(time.time())
        if self.directory:
            self._write_progress(self._first_step, self._request.steps, 0, 0.0)
            if self.directory.cancelled():
                self._stop(self._first_step)

    def __call__(self, progress: Progress) -> None:
        self.metrics.stepped("computed" if progress.computed else "cached", progress.seconds, time.time())
        if progress.computed:
            self._computed_seconds.append(progress.seconds)
        if self.directory is None:
            return
        self._write_progress(progress.step, progress.steps, progress.skipped, progress.seconds)
        cancelled = progress.step < progress.steps and self.directory.cancelled()
        # A worker that must leave its machine also cancels: what was done until now should not be lost.
        self._save_checkpoint(progress, at_once=cancelled)
        self._save_preview(progress)
        if cancelled:
            self._stop(progress.step)

    def _write_progress(self, step: int, steps: int, skipped: int, seconds: float) -> None:
        recent = self._computed_seconds[-5:]
        average = sum(recent) / len(recent) if recent else None
        eta = None if average is None else round(average * (steps - step), 3)
        self.directory.write_progress(
            {
                "step": step,
                "steps": steps,
                "skipped": skipped,
                "step_seconds": round(seconds, 4),
                "eta_seconds": eta,
                "phase": "denoise",
            }
        )

    def _save_checkpoint(self, progress: Progress, at_once: bool) -> None:
        due = time.monotonic() - self._last_checkpoint >= self._intervals.checkpoint
        if progress.resumable and (due or at_once):
            checkpoint = StepCheckpoint(progress.step, self._request.seed, progress.state.tensors())
            self.directory.save_checkpoint(checkpoint, self._fingerprint)
            self._last_checkpoint = time.monotonic()

    def _save_preview(self, progress: Progress) -> None:
        due = time.monotonic() - self._last_preview >= self._intervals.preview
        if self._preview and (due or progress.step == progress.steps):
            x0 = progress.x0.float().cpu().numpy()
            self.directory.replace("preview.webp", lambda path: self._preview.write(x0, path))
            self._last_preview = time.monotonic()

    def _stop(self, step: int) -> None:
        raise Cancelled(f"cancelled after step {step} of {self._request.steps}")
