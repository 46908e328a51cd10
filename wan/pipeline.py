"""Text to video in one process: the three verbs that the serving stages call, and their composition."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wan.checkpoint import Checkpoint
from wan.config import Defaults
from wan.denoise import DenoiseInfo, Progress, Resume, denoise, schedule_of
from wan.dit import WanDiT
from wan.optimize import optimized
from wan.request import GenerationRequest
from wan.teacache import StepCache
from wan.text import TextEncoder, Tokenizer
from wan.vae import WanVAE
from wan.vae_cpu import accelerate


@dataclass(frozen=True)
class Video:
    """Frames uint8 [T, H, W, 3], final latents float32 [C, T', h, w] and what is known about the run."""

    frames: np.ndarray
    latents: Tensor
    info: dict


def to_uint8(frames: Tensor) -> Tensor:
    """Video in [-1, 1], [3, T, H, W], to bytes [T, H, W, 3]."""
    return ((frames.permute(1, 2, 3, 0).float() + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)


@dataclass
class Pipeline:
    """A loaded checkpoint. Every method may be called again and again; nothing is kept between calls."""

    tokenizer: Tokenizer
    text_encoder: TextEncoder
    dit: WanDiT
    vae: WanVAE
    defaults: Defaults
    caches: dict[str, StepCache]
    grid: str

    @classmethod
    def from_checkpoint(cls, path: str | Path, device=None, dtype: torch.dtype | None = None) -> "Pipeline":
        """Load all components of a checkpoint in either layout.

        `dtype` is that of the text encoder and the DiT: float32 by default on a CPU, bfloat16 elsewhere. The VAE runs
        in float32, as in the reference.
        """
        checkpoint = Checkpoint.open(path)
        device = torch.device(device or "cpu")
        dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
        return cls(
            tokenizer=Tokenizer(checkpoint.tokenizer_directory),
            text_encoder=checkpoint.load_text_encoder(device, dtype),
            dit=optimized(checkpoint.load_dit(device, dtype)),
            vae=accelerate(checkpoint.load_vae(device, torch.float32)),
            defaults=checkpoint.defaults,
            caches=checkpoint.caches,
            grid=checkpoint.grid,
        )

    def encode(self, texts: list[str]) -> Tensor:
        """Text embeddings [B, 512, text_dim], zero after the end of each text."""
        return self.text_encoder.encode(*self.tokenizer(texts))

    def denoise(
        self,
        context: Tensor,
        negative_context: Tensor | None,
        request: GenerationRequest,
        latents: Tensor | None = None,
        on_step: Callable[[Progress], None] | None = None,
        resume: Resume | None = None,
    ) -> tuple[Tensor, DenoiseInfo]:
        """See `wan.denoise.denoise`; uses the checkpoint's sigma grid and step caches."""
        return denoise(
            self.dit, context, negative_context, request,
            schedule=schedule_of(request, self.grid), cache_model=self.caches.get(request.cache), latents=latents, on_step=on_step, resume=resume,
        )  # fmt: skip

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents [C, T', h, w] to frames uint8 [T, H, W, 3]; only the bytes are ever held for the whole video."""
        parameter = next(self.vae.parameters())
        latents = latents[None].to(parameter.device, parameter.dtype)
        return torch.cat([to_uint8(frames[0]).cpu() for frames in self.vae.decode_stream(latents)]).numpy()

    def __call__(
        self,
        prompt: str,
        negative_prompt: str | None = None,
        width: int | None = None,
        height: int | None = None,
        num_frames: int | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        flow_shift: float | None = None,
        seed: int | None = None,
        sampler: str | None = None,
        cache_threshold: float | None = None,
        cache: str | None = None,
        guidance_end: float | None = None,
        latents: Tensor | None = None,
        on_step: Callable[[Progress], None] | None = None,
    ) -> Video:
        """Generate one video; what is None takes the checkpoint's default. Raises InvalidRequest."""
        request = GenerationRequest.create(
            self.defaults, prompt, negative_prompt=negative_prompt, width=width, height=height, num_frames=num_frames,
            steps=steps, guidance_scale=guidance_scale, flow_shift=flow_shift, seed=seed, sampler=sampler,
            cache_threshold=cache_threshold, cache=cache, guidance_end=guidance_end,
        )  # fmt: skip
        clock = [time.perf_counter()]
        context, negative = self.encode([request.prompt, request.negative_prompt])
        clock.append(time.perf_counter())
        latents, done = self.denoise(context, negative, request, latents, on_step)
        clock.append(time.perf_counter())
        frames = self.decode(latents)
        clock.append(time.perf_counter())
        names = ("text_encoder", "denoise", "vae_decoder")
        seconds = {name: round(b - a, 6) for name, a, b in zip(names, clock[:-1], clock[1:], strict=True)}
        return Video(frames, latents.cpu(), describe(request, done, self.defaults.fps, seconds))


def describe(request: GenerationRequest, done: DenoiseInfo, fps: int, seconds: dict[str, float]) -> dict:
    """The facts about a finished run that clients get as INFO."""
    parameters = {name: value for name, value in vars(request).items() if name not in ("prompt", "negative_prompt")}
    counts = {
        "steps_computed": done.steps_computed,
        "steps_skipped": done.steps_skipped,
        "skipped": [i for i, computed in enumerate(done.plan) if not computed],
        "forwards": done.forwards,
        "resumed_from": done.resumed_from,
    }
    return parameters | counts | {"engine": done.engine, "fps": fps, "seconds": seconds}
