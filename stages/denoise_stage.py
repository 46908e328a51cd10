"""The denoise stage: loads the DiT once and runs the loop for one request at a time."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch

from contract import traces
from contract.adapter_store import AdapterStore, Entry
from contract.errors import InvalidRequest
from contract.lora_keys import unfolded
from contract.parameters import LOSSLESS, GenerationRequest
from stages.adapters import LoadedAdapters
from stages.artifacts import Artifacts
from stages.crew import Crew, open_on_ranks
from stages.device import leave_room, name, on_device
from stages.inputs import array, find, flag, json_object, scalar
from stages.limits import Limits
from stages.media import checked_hashes
from stages.metrics import DenoiseMetrics
from stages.preview import PreviewProjection
from stages.run_directory import RunDirectory, sweep
from stages.runtimes import device_of
from stages.settings import StageSettings
from stages.step_hook import Intervals, StepHook
from wan.attention import BACKENDS
from wan.denoise import Conditioning
from wan.pipeline import describe

NOT_OF_THE_BITS = ("parallel", "blocks_on_device", "text_attention")
NAMES = [field.name for field in fields(GenerationRequest)]


class DenoiseStage:
    def __init__(self, artifacts: Artifacts, settings: StageSettings, metrics: DenoiseMetrics):
        self._manifest, self._settings, self._metrics = artifacts.manifest, settings, metrics
        self._text = artifacts.manifest["text"]
        self._card, self._limits = artifacts.card, Limits.of(artifacts, settings)
        self._device = device_of(artifacts, settings)
        if settings.run_dir:
            sweep(settings.run_dir)
        self._crew: Crew | None = None
        try:
            with on_device(self._device):
                self._load(artifacts)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the processes that this stage has started."""
        if self._crew:
            self._crew.close()

    def _load(self, artifacts: Artifacts) -> None:
        settings = self._settings
        leave_room(artifacts.manifest, "denoise", self._device)
        self._denoiser, self._crew = open_on_ranks(artifacts, settings)
        self._adapters = LoadedAdapters(
            AdapterStore(settings.lora_dir, settings.storage_endpoint_url), unfolded(self._card.weights),
            len(self._denoiser.experts), settings.lora_cache_bytes,
        )  # fmt: skip
        self._model = model_fingerprint(artifacts.manifest, self._denoiser.engine)
        self._metrics.attention(self._denoiser.attention_ms, self._denoiser.engine["attention"])
        self._preview = PreviewProjection.of(artifacts)
        self._intervals = Intervals(settings.checkpoint_seconds, settings.preview_seconds)
        self._warm_up()

    def _warm_up(self) -> None:
        """One step of each size that was exported for by each expert, with and without guidance: kernels are chosen by shape."""
        defaults, context = self._card.defaults, torch.zeros(self._text["length"], self._text["dim"])
        sizes = {(defaults.width, defaults.height): None}  # in order: the default first
        sizes |= {tuple(size): None for size in (self._manifest.get("sizes") or {"fixed": ()})["fixed"]}
        planned = [(*size, defaults.num_frames) for size in sizes]
        for width, height, frames in self._settings.warm_sizes or planned:
            size = {"width": width, "height": height, "num_frames": frames}
            request = self._card.request(prompt="warm up", seed=0, steps=1, **size, **LOSSLESS)
            for each in {request, request.unguided()}:
                for schedule in self._denoiser.single_steps():
                    self._denoiser.run(self._denoiser.blank(context, each), each, schedule=schedule)

    def handle(self, request) -> dict[str, np.ndarray]:
        with on_device(self._device):
            return self._handle(request)

    def _handle(self, request) -> dict[str, np.ndarray]:
        generation, tokenized_at, media = self._generation(str(scalar(request, "REQUEST", "STRING")))
        self._limits.check(generation)
        conditioning = self._conditioning(request, generation, media)
        schedule = self._denoiser.schedule(generation, of_clip=conditioning.start is not None)
        directory = RunDirectory.of_request(self._settings.run_dir, request.request_id())
        preview = self._preview if flag(request, "preview") else None
        entries = self._adapters.named(generation.lora)
        fingerprint = generation.fingerprint(self._model, media, {entry.name: entry.digest for entry in entries})
        run = StepHook(
            generation, self._denoiser.plan(generation, schedule), fingerprint,
            directory and directory.open(), self._intervals, self._metrics, preview, gone=request.is_cancelled,
        )  # fmt: skip
        latents, info = self._run(run, generation, conditioning, entries)
        if run.refused:
            info["checkpoint_refused"] = run.refused
        if (encoding := _encoding_seconds(request, tokenized_at)) is not None:
            info["seconds"] = {"text_encoder": round(encoding, 4)} | info["seconds"]
        return {"LATENTS": latents.cpu().numpy(), "INFO": np.array([json.dumps(info)], np.object_)}

    def _conditioning(self, request, generation: GenerationRequest, media: dict[str, str]) -> Conditioning:
        """What the stages before this one made of the request."""

        def tensor(name: str, dims: tuple[int, ...]) -> torch.Tensor:
            return torch.from_numpy(array(request, name, "FP32", dims))

        dims = (1, self._text["length"], self._text["dim"])
        texts = tensor("CONTEXT", dims)[0], tensor("NEGATIVE_CONTEXT", dims)[0]
        if not self._card.continues:
            z, frames, *space = self._card.geometry.latent_shape(
                generation.width, generation.height, generation.num_frames
            )
            return Conditioning(
                *texts,
                start=tensor("CONDITION", (z, frames, *space)) if "video" in media else None,
                first=tensor("CONDITION", (z, 1, *space)) if "image" in media else None,
            )
        like = self._denoiser.blank(texts[0], generation)
        channels = None if like.channels is None else tensor("CONDITION", tuple(like.channels.shape))
        if like.image_tokens is None:
            return Conditioning(*texts, channels=channels)
        tokens = tensor("IMAGE_TOKENS", (-1, like.image_tokens.shape[1]))
        return Conditioning(*texts, channels=channels, image_tokens=tokens)

    def _run(
        self, run: StepHook, generation: GenerationRequest, conditioning: Conditioning, entries: Sequence[Entry]
    ) -> tuple[torch.Tensor, dict]:
        began, success = time.monotonic(), False
        try:
            run.begin()
            if self._crew:
                self._crew.ready()
            adapters = self._adapters.load(entries)
            latents, steps = self._denoiser.run(
                conditioning, generation, on_step=run, resume=run.resume_point(), adapters=adapters
            )
            success = True
        finally:
            seconds = time.monotonic() - began
            self._metrics.ended(seconds, success)
        info = describe(self._card, generation, steps, {"denoise": round(seconds, 4)})
        traces.note({f"wan.{count}": info[count] or 0 for count in ("steps_computed", "steps_skipped", "resumed_from")})
        return latents, info | {"device": name(self._device)}

    def _generation(self, text: str) -> tuple[GenerationRequest, float, dict[str, str]]:
        """The request that the tokenizer resolved, when it did (monotonic seconds), and the hashes of its media."""
        what = "the REQUEST of the tokenizer model"
        values = json_object("REQUEST", text, what)
        try:
            resolved = {name: values[name] for name in NAMES if name not in self._card.row.unused}
            generation = self._card.request(**resolved)
            tokenized_at, media = float(values["tokenized_at"]), checked_hashes(values.get("media", {}), self._card)
            (generation.prompt + generation.negative_prompt).encode()  # JSON can escape half a surrogate pair
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise InvalidRequest("REQUEST", text, what) from error
        if None in resolved.values() or not math.isfinite(tokenized_at):
            raise InvalidRequest("REQUEST", text, what)
        return generation, tokenized_at, media


def model_fingerprint(manifest: dict, engine: dict) -> str:
    """What a checkpoint of a run may only be continued by.

    On a GPU the weights also depend on precision and LoRAs. Only the same arithmetic gives the same bits; that a checkpoint
    goes on with another number of ranks, or on a machine whose lossless attention is another, is worth a difference in the
    last ones. Where weights lie makes none.
    """
    known = {name: value for name, value in engine.items() if name not in NOT_OF_THE_BITS}
    if BACKENDS[engine["attention"]].lossless:
        known["attention"] = "lossless"
    return json.dumps({"weights": manifest.get("model") or manifest["source"]["sha256"]} | known, sort_keys=True)


def _encoding_seconds(request, tokenized_at: float) -> float | None:
    """Seconds spent on encoding for this request, or None from an encoder that does not time itself (a TensorRT plan).

    An embedding older than its tokens came from the cache.
    """
    timings = [found for name in ("TIMING", "NEGATIVE_TIMING") if (found := find(request, name)) is not None]
    return float(sum(timing[1] for timing in timings if timing[0] >= tokenized_at)) if timings else None
