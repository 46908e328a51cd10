"""Text to video in one process: the three verbs that the serving stages call, and their composition."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from contract.card import ModelCard
from contract.geometry import Geometry
from contract.parameters import GenerationRequest
from wan import known_frames, offload
from wan.checkpoint import Checkpoint
from wan.clip import ClipVision
from wan.denoise import GUIDANCE, NO_ADAPTERS, Conditioning, DenoiseInfo, Denoiser, Expert, Progress, Resume
from wan.dit import WanDiT
from wan.lora import Lora
from wan.optimize import Options, optimized
from wan.pictures import Clip, Picture, clip_pixels
from wan.text import TextEncoder, Tokenizer
from wan.vae import WanVAE
from wan.vae_cpu import accelerate


@dataclass(frozen=True)
class Media:
    """Pictures and the frames of a clip that a request carries, see `contract.media`."""

    image: Picture | None = None
    last_image: Picture | None = None
    video: Clip | None = None

    @classmethod
    def grey(cls, card: ModelCard, request: GenerationRequest) -> "Media":
        """What the model needs of pictures, in grey: for measurements."""
        grey = np.full((request.height, request.width, 3), 127, np.uint8)
        return cls(*(grey if name in card.needs else None for name in ("image", "last_image")))

    @property
    def given(self) -> tuple[str, ...]:
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)


@dataclass(frozen=True)
class Video:
    """Frames uint8 [T, H, W, 3], final latents float32 [C, T', h, w] and what is known about the run."""

    frames: np.ndarray
    latents: Tensor
    info: dict


def to_uint8(frames: Tensor) -> Tensor:
    """Video in [-1, 1], [3, T, H, W], to bytes [T, H, W, 3]."""
    return ((frames.permute(1, 2, 3, 0).float() + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)


def default_dtype(device: torch.device) -> torch.dtype:
    """Of the text encoder and the DiT where nothing else is asked for."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def denoiser(checkpoint: Checkpoint, geometry: Geometry, dits: Sequence[WanDiT]) -> Denoiser:
    """The experts of a checkpoint around DiTs that were loaded from it, in order."""
    lowest = (0.0,) if checkpoint.boundary is None else (1000 * checkpoint.boundary, 0.0)
    experts = [Expert(*each) for each in zip(dits, checkpoint.caches, lowest, GUIDANCE[: len(dits)], strict=True)]
    return Denoiser(tuple(experts), geometry, checkpoint.grid, checkpoint.variant.levels)


def at_size(options: Options, card: ModelCard, size: tuple[int, int, int] | None = None) -> Options:
    """`options` measured at (width, height, frames), by default the card's, unless they say at how many tokens."""
    usual = card.defaults
    tokens = card.geometry.tokens(*(size or (usual.width, usual.height, usual.num_frames)))
    return replace(options, tokens=options.tokens or tokens)


def load_denoiser(
    checkpoint: Checkpoint,
    geometry: Geometry,
    device: torch.device,
    dtype: torch.dtype | None = None,
    options: Options | None = None,
    blocks_on_device: int | None = None,
) -> Denoiser:
    """Every expert of a checkpoint, FP8 packages included, computing as `options` say.

    With `blocks_on_device` blocks lie on the host, and so many of one expert at a time on the device, see `wan.offload`.
    """
    dtype, options, experts = dtype or default_dtype(device), options or Options(), range(len(checkpoint.dit_folders))
    if blocks_on_device is None:
        dits = [optimized(checkpoint.load_dit(device, dtype, expert), options) for expert in experts]
    else:
        on_host = (checkpoint.load_dit("cpu", dtype, expert) for expert in experts)
        dits = [optimized(offload.beside(dit, device), options) for dit in on_host]
        offload.stream(dits, blocks_on_device)
    return denoiser(checkpoint, geometry, dits)


@dataclass
class Pipeline:
    """A loaded checkpoint. Every method may be called again and again; nothing is kept between calls."""

    tokenizer: Tokenizer
    text_encoder: TextEncoder
    denoiser: Denoiser
    vae: WanVAE
    card: ModelCard
    clip: ClipVision | None = None  # of a checkpoint whose DiT takes picture tokens

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, device=None, dtype: torch.dtype | None = None, options: Options | None = None, dit=None
    ) -> "Pipeline":
        """Load all components of a checkpoint in either layout; `dit` is another one that its DiT is taken from.

        `dtype` is that of the text encoder and the DiT: float32 by default on a CPU, bfloat16 elsewhere. The VAE runs
        in float32, as in the reference.
        """
        checkpoint, device = Checkpoint.open(path), torch.device(device or "cpu")
        package, options = Checkpoint.open(dit) if dit else checkpoint, at_size(options or Options(), checkpoint.card)
        return cls(
            tokenizer=Tokenizer(checkpoint.tokenizer_directory),
            text_encoder=checkpoint.load_text_encoder(device, dtype or default_dtype(device)),
            denoiser=load_denoiser(package, checkpoint.card.geometry, device, dtype, options),
            vae=accelerate(checkpoint.load_vae(device, torch.float32)),
            card=checkpoint.card,
            clip=checkpoint.load_clip(device, torch.float32) if checkpoint.dit_config().image_dim else None,
        )

    def with_dits(self, dits: Sequence[WanDiT]) -> "Pipeline":
        """The same with other DiTs in the experts' places."""
        experts = tuple(replace(e, dit=dit) for e, dit in zip(self.denoiser.experts, dits, strict=True))
        return replace(self, denoiser=replace(self.denoiser, experts=experts))

    def encode(self, texts: list[str]) -> Tensor:
        """Text embeddings [B, 512, text_dim], zero after the end of each text."""
        return self.text_encoder.encode(*self.tokenizer(texts))

    def condition(self, request: GenerationRequest, media: Media = Media()) -> Conditioning:
        """What the model is given of a request besides noise. Raises InvalidRequest for media it does not take."""
        self.card.check_media(media.given)
        text, negative = self.encode([request.prompt, request.negative_prompt])
        size, geometry = (request.width, request.height, request.num_frames), self.card.geometry
        if not self.card.continues:
            clip, image, encode = media.video, media.image, self.vae.encode_stream
            start = None if clip is None else known_frames.clip_latents(clip, size, geometry, encode)
            first = None if image is None else known_frames.first_latents(image, size, encode)
            return Conditioning(text, negative, start=start, first=first)
        known = known_frames.arrange(media.image, media.last_image, media.video, size, geometry)
        channels = known_frames.channels(known, size, geometry, self.vae.encode_stream)
        return Conditioning(text, negative, channels=channels, image_tokens=self.image_tokens(known))

    @torch.inference_mode()
    def image_tokens(self, known: known_frames.Known) -> Tensor | None:
        """CLIP's tokens [L, image_dim] of the first known frame and, where the model tells them apart, of the last one."""
        if self.clip is None:
            return None
        seen = known_frames.seen_by_clip(known, self.denoiser.pictures)
        if not seen:  # as Fun-InP without a picture
            return torch.zeros(self.clip.config.tokens, self.clip.config.dim)
        pixels = torch.stack([clip_pixels(frame, self.clip.config.image_size) for frame in seen])
        return self.clip(pixels.to(self.clip.pre_layrnorm.weight.device)).flatten(0, 1)

    def denoise(
        self,
        conditioning: Conditioning,
        request: GenerationRequest,
        latents: Tensor | None = None,
        on_step: Callable[[Progress], None] | None = None,
        resume: Resume | None = None,
        adapters: Mapping[str, Sequence[Lora | None]] = NO_ADAPTERS,
    ) -> tuple[Tensor, DenoiseInfo]:
        """See `Denoiser.run`."""
        return self.denoiser.run(
            conditioning, request, latents=latents, on_step=on_step, resume=resume, adapters=adapters
        )

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents [C, T', h, w] to frames uint8 [T, H, W, 3]; only the bytes are ever held for the whole video."""
        parameter = next(self.vae.parameters())
        latents = latents[None].to(parameter.device, parameter.dtype)
        return torch.cat([to_uint8(frames[0]).cpu() for frames in self.vae.decode_stream(latents)]).numpy()

    def __call__(
        self, prompt: str, *, image: Picture | None = None, last_image: Picture | None = None,
        video: Clip | None = None, latents: Tensor | None = None,
        on_step: Callable[[Progress], None] | None = None,
        adapters: Mapping[str, Sequence[Lora | None]] = NO_ADAPTERS, **parameters,
    ) -> Video:  # fmt: skip
        """Generate one video, from pictures (PIL or uint8 [H, W, 3]) or a clip (frames) if the model takes them. `parameters`
        are those of `contract.GenerationRequest`; what is absent or None takes the checkpoint's default. `adapters`: for each
        name in the parameter `lora` one for each expert. Raises InvalidRequest."""
        media = Media(image, last_image, video)
        request = self.card.request(prompt=prompt, **parameters)
        clock = [time.perf_counter()]
        conditioning = self.condition(request, media)
        clock.append(time.perf_counter())
        latents, done = self.denoise(conditioning, request, latents, on_step, adapters=adapters)
        clock.append(time.perf_counter())
        frames = self.decode(latents)
        clock.append(time.perf_counter())
        names = ("text_encoder", "denoise", "vae_decoder")
        seconds = {name: round(b - a, 6) for name, a, b in zip(names, clock[:-1], clock[1:], strict=True)}
        return Video(frames, latents.cpu(), describe(self.card, request, done, seconds))


def describe(card: ModelCard, request: GenerationRequest, done: DenoiseInfo, seconds: dict[str, float]) -> dict:
    """The facts about a finished run that clients get as INFO."""
    said = {name: value for name, value in asdict(request).items() if name not in ("prompt", "negative_prompt")}
    parameters = {name: list(value) if isinstance(value, tuple) else value for name, value in said.items()}
    counts: dict = {
        "steps_computed": done.steps_computed,
        "steps_skipped": done.steps_skipped,
        "skipped": [i for i, step in enumerate(done.plan) if not step.computed],
        "forwards": done.forwards,
        "resumed_from": done.resumed_from,
    }
    if done.plan[-1].expert:
        counts["first_expert_steps"] = sum(step.expert == 0 for step in done.plan)
    if done.attention_ms:
        counts["attention_ms"] = done.attention_ms
    if warnings := card.warnings(request):
        counts["warnings"] = warnings
    return parameters | counts | {"engine": done.engine, "fps": card.defaults.fps, "seconds": seconds}
