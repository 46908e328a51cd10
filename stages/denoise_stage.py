"""The denoise stage: loads the DiT once and runs the loop for one request at a time."""

import json
import time
from dataclasses import fields, replace

import numpy as np
import torch

from stages.artifacts import Artifacts
from stages.denoise_run import DenoiseRun, Intervals
from stages.device import device_tensor, leave_room
from stages.inputs import find, flag, scalar
from stages.metrics import DenoiseMetrics
from stages.preview import PreviewProjection
from stages.rundir import RunDirectory
from stages.settings import StageSettings, threads
from wan.checkpoint import Checkpoint
from wan.config import Defaults
from wan.denoise import denoise
from wan.errors import InvalidRequest
from wan.fp8 import load_dit
from wan.optimize import optimized
from wan.pipeline import describe
from wan.request import GenerationRequest


class DenoiseStage:
    def __init__(self, artifacts: Artifacts, settings: StageSettings, metrics: DenoiseMetrics):
        self._manifest, self._settings, self._metrics = artifacts.manifest, settings, metrics
        self._text = artifacts.manifest["text"]
        # On a GPU the weights also depend on precision and LoRAs.
        self._model = artifacts.manifest.get("model") or artifacts.manifest["source"]["sha256"]
        self._device = torch.device(artifacts.device or settings.device)
        leave_room(artifacts.manifest, "denoise", self._device)
        if self._device.type == "cpu":
            instances = artifacts.manifest["instances"]["denoise"]
            torch.set_num_threads(settings.denoise_threads or max(threads(0) // instances, 1))
        checkpoint = Checkpoint.open(artifacts["checkpoint"])
        self._grid, self._caches = checkpoint.grid, checkpoint.caches
        dtype = torch.float32 if self._device.type == "cpu" else torch.bfloat16
        self._dit = optimized(load_dit(checkpoint, self._device, dtype))
        self._preview = PreviewProjection.from_manifest(artifacts.manifest)
        self._intervals = Intervals(settings.checkpoint_seconds, settings.preview_seconds)
        self._warm_up()

    def _warm_up(self) -> None:
        defaults = Defaults.from_dict(self._manifest["defaults"], "manifest.json: defaults")
        request = GenerationRequest.create(replace(defaults, steps=1), prompt="warm up", seed=0, cache_threshold=0.0)
        context = torch.zeros(self._text["length"], self._text["dim"])
        denoise(self._dit, context, context, request, grid=self._grid)

    def handle(self, request) -> dict[str, np.ndarray | torch.Tensor]:
        generation, tokenized_at = _generation(scalar(request, "REQUEST", "STRING"))
        dims = (1, self._text["length"], self._text["dim"])
        context, negative = device_tensor(request, "CONTEXT", dims), device_tensor(request, "NEGATIVE_CONTEXT", dims)
        directory = RunDirectory.of_request(self._settings.run_dir, request.request_id())
        preview = self._preview if flag(request, "preview") else None
        run = DenoiseRun(generation, self._model, directory, self._intervals, self._metrics, preview)
        latents, info = self._run(run, generation, context[0], negative[0])
        info["seconds"]["text_encoder"] = round(_encoding_seconds(request, tokenized_at), 4)
        return {"LATENTS": latents, "INFO": np.array([json.dumps(info)], np.object_)}

    def _run(self, run: DenoiseRun, generation: GenerationRequest, context, negative) -> tuple[torch.Tensor, dict]:
        began, success = time.monotonic(), False
        try:
            run.begin()
            latents, steps = denoise(
                self._dit,
                context,
                negative,
                generation,
                grid=self._grid,
                cache_model=self._caches.get(generation.cache),
                on_step=run,
                resume=run.resume_point(),
            )
            if latents.is_cuda:  # they stay on the GPU; the next stage must not see them before they are there
                torch.cuda.synchronize(self._device)
            success = True
        finally:
            seconds = time.monotonic() - began
            self._metrics.ended(seconds, success)
        return latents, describe(generation, steps, self._manifest["defaults"]["fps"], {"denoise": round(seconds, 4)})


def _generation(text: str) -> tuple[GenerationRequest, float]:
    """The request that the tokenizer resolved, and when it did (monotonic seconds)."""
    names = {field.name for field in fields(GenerationRequest)}
    try:
        values = json.loads(text)
        return GenerationRequest(**{name: values[name] for name in names}), float(values["tokenized_at"])
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidRequest("REQUEST", text, "the REQUEST of the tokenizer model") from error


def _encoding_seconds(request, tokenized_at: float) -> float:
    """Seconds spent on encoding for this request: an embedding older than its tokens came from the cache."""
    timings = [find(request, name) for name in ("TIMING", "NEGATIVE_TIMING")]
    return float(sum(timing[1] for timing in timings if timing is not None and timing[0] >= tokenized_at))
