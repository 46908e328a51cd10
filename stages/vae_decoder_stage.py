"""The VAE decoder stage: latents to frames, one latent frame at a time."""

import json
import time
from collections.abc import Callable

import numpy as np
import torch

from stages.artifacts import Artifacts
from stages.inputs import array, flag, json_object, scalar
from stages.limits import Limits
from stages.metrics import StageMetrics
from stages.run_directory import FrameFile, RunDirectory
from stages.runtimes import open_vae
from stages.settings import StageSettings
from stages.vae_runtime import decode
from wan.errors import Cancelled, InvalidRequest


class VaeDecoderStage:
    """Memory beyond the output does not depend on the length of the video."""

    def __init__(self, artifacts: Artifacts, settings: StageSettings, metrics: StageMetrics):
        self._geometry = artifacts.card.geometry
        self._settings, self._metrics = settings, metrics
        self._limits = Limits.of(artifacts, settings)
        self._runtime = open_vae(artifacts, settings)
        defaults, two_latent_frames = artifacts.card.defaults, self._geometry.num_frames(2)
        self._decode(torch.zeros(self._geometry.latent_shape(defaults.width, defaults.height, two_latent_frames)))

    def handle(self, request) -> dict[str, np.ndarray]:
        dims = (self._geometry.latent_channels, -1, -1, -1)
        latents = torch.from_numpy(array(request, "LATENTS", "FP32", dims, self._limits.check_latents))
        info = self._info(str(scalar(request, "DENOISE_INFO", "STRING")))
        directory = RunDirectory.of_request(self._settings.run_dir, request.request_id())
        report = DecodeReport(directory and directory.open(), info, request.is_cancelled)
        shown = directory.frames() if directory and flag(request, "stream") else None
        began = time.monotonic()
        frames = self._decode(latents, report, shown)
        if directory:
            directory.remove_checkpoint()
        seconds = time.monotonic() - began
        self._metrics.finished(seconds)
        info["seconds"]["vae_decoder"] = round(seconds, 4)
        return {"FRAMES": frames, "INFO": np.array([json.dumps(info)], np.object_)}

    @staticmethod
    def _info(text: str) -> dict:
        what = "the INFO of the denoise model"
        info = json_object("DENOISE_INFO", text, what)
        counted = all(type(info.get(name)) is int for name in ("steps", "steps_skipped"))
        if not counted or not isinstance(info.get("seconds"), dict):
            raise InvalidRequest("DENOISE_INFO", text, what)
        return info

    def _decode(
        self,
        latents: torch.Tensor,
        on_frame: Callable[[int, int], None] | None = None,
        shown: FrameFile | None = None,
    ) -> np.ndarray:
        _, count, height, width = latents.shape
        space = self._geometry.spatial_stride
        video = np.empty((self._geometry.num_frames(count), height * space, width * space, 3), np.uint8)
        position = 0
        for done, frames in enumerate(decode(self._runtime, latents), start=1):
            video[position : position + len(frames)] = frames
            position += len(frames)
            if shown:
                shown.append(frames)
            if on_frame:
                on_frame(done, count)
        return video


class DecodeReport:
    """Writes the progress of decoding, where there is a directory, and looks for a cancel after each latent frame."""

    def __init__(self, directory: RunDirectory | None, info: dict, gone: Callable[[], bool]):
        self._directory, self._gone = directory, gone
        self._fixed = {"step": info["steps"], "steps": info["steps"], "skipped": info["steps_skipped"]}
        self._began = time.monotonic()

    def __call__(self, done: int, count: int) -> None:
        average = (time.monotonic() - self._began) / done
        progress = {
            "step_seconds": round(average, 4),
            "eta_seconds": round(average * (count - done), 3),
            "phase": "decode",
        }
        if self._directory:
            self._directory.write_progress(self._fixed | progress)
        if done < count and self._cancelled():
            raise Cancelled(f"cancelled after decoding {done} of {count} latent frames")

    def _cancelled(self) -> bool:
        return (self._directory is not None and self._directory.cancelled()) or self._gone()
