"""The denoise loop: schedule, experts, guidance, caches and solver, with a hook after every step.

A checkpoint's denoiser is a list of experts, each answering for a range of timesteps (one for Wan 2.1). Whatever is
computed from an expert's weights (time embeddings, keys and values, cached residuals) lives as long as that expert is
active; the solver's state runs through all of them.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from contract.geometry import Geometry
from contract.parameters import GenerationRequest, guided_steps, may_skip, steps_of_clip
from wan import samplers
from wan.dit import Sources, WanDiT
from wan.errors import InvalidRequest
from wan.samplers import SamplerState, Schedule
from wan.teacache import StepCache

# Above this many tokens one forward fills the machine and two branches at once only cost memory.
MAX_BATCHED_TOKENS = 8192
CLIP_TOKENS = 257  # of one picture, where only the number of them matters
GUIDANCE = ("guidance_scale", "guidance_scale_2")  # the parameter that holds each expert's guidance scale
MAX_MEMORY_SHARE = 0.5  # of what is free, for the activations of a batch


@dataclass(frozen=True)
class Conditioning:
    """What a request gives the model besides noise; what is None is absent.

    `text` and `negative_text` are embeddings [L, text_dim] with zero rows as padding; the latter is not used without
    guidance. `channels` [in - out, T', h, w] go into the model beside the latents at every step (mask and latents of the
    known frames), never into the solver. `image_tokens` [L, image_dim] are CLIP's of the pictures. Both guidance branches
    see the same of both. `start` [C, T', h, w] are latents of a clip to change: the run begins at the noise level that the
    request's strength names. `first` [C, 1, h, w] is the first latent frame of the result: it is shown to the model free of
    noise, at timestep 0.
    """

    text: Tensor
    negative_text: Tensor | None = None
    channels: Tensor | None = None
    image_tokens: Tensor | None = None
    start: Tensor | None = None
    first: Tensor | None = None

    def impose(self, latents: Tensor) -> Tensor:
        """The latents, with the first frame where it is given."""
        return latents if self.first is None else torch.cat([self.first.to(latents), latents[:, 1:]], dim=1)


@dataclass(frozen=True)
class Expert:
    """A DiT, the timesteps it answers for (from `lowest_timestep` up to the expert before it) and its calibrated caches.

    `guidance` names the request's parameter that holds its guidance scale.
    """

    dit: WanDiT
    caches: Mapping[str, StepCache] = field(default_factory=dict)
    lowest_timestep: float = 0.0
    guidance: str = GUIDANCE[0]


@dataclass(frozen=True)
class Step:
    """What one step will do: by which expert, computed or from the cache, and with how many guidance branches."""

    expert: int
    computed: bool
    branches: int


Plan = tuple[Step, ...]


@dataclass(frozen=True)
class Progress:
    """What `on_step` sees after a step: `step` steps of `steps` are done.

    `resumable` says that `state` (with `step`) is all that is needed to continue: the next step does not reuse a
    cached residual. `x0` estimates the final latents, [C, T', h, w] float32.
    """

    step: int
    steps: int
    skipped: int
    computed: bool
    seconds: float
    resumable: bool
    state: SamplerState
    x0: Tensor


@dataclass(frozen=True)
class Resume:
    """A point to continue from: `step` steps are done and `state` is the solver's state after them."""

    step: int
    state: SamplerState


@dataclass
class DenoiseInfo:
    """What a run did, by its plan; `forwards` counts single-sample model evaluations."""

    plan: Plan
    engine: dict
    resumed_from: int | None = None
    steps_computed: int = 0
    steps_skipped: int = 0
    forwards: int = 0
    step_seconds: list[float] = field(default_factory=list)

    def count(self, step: Step, seconds: float) -> None:
        self.step_seconds.append(seconds)
        self.steps_computed += step.computed
        self.steps_skipped += not step.computed
        self.forwards += step.computed * step.branches


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a GPU or, for the CPU, in the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def batch_branches(dit: WanDiT, tokens: int) -> bool:
    """Whether both guidance branches go through the model as one batch: if they are small and their memory is there."""
    if 2 * tokens > MAX_BATCHED_TOKENS:
        return False
    # the widest moment: residual, norm and the hidden feed-forward layer
    width = dit.config.ffn_dim + 8 * dit.config.dim
    return 2 * tokens * width * 4 <= MAX_MEMORY_SHARE * free_bytes(dit.device)


class _Evaluator:
    """An expert with what stays the same over a request; evaluates one step, both guidance branches."""

    def __init__(
        self, dit: WanDiT, timesteps: Sequence[float], texts: list[Tensor], guidance: float, shape, given: Conditioning
    ):
        self.dit, self.guidance = dit, guidance
        self.channels = _channels(dit, given, shape)
        self.time, self.modulation = dit.time_embeddings(timesteps)
        self.rotary = dit.rotary(shape)
        self.still = 0 if given.first is None else self.rotary.shape[1] // shape[1]  # tokens at timestep 0, see `_rows`
        self.at_zero = dit.time_embeddings([0.0]) if self.still else None
        image = None if given.image_tokens is None else given.image_tokens[None].to(dit.device)
        both = dit.conditioning(torch.stack(texts).to(dit.device), image)
        self.conditional = both.select(0)
        tokens = self.rotary.shape[1]
        whole = len(texts) == 1 or batch_branches(dit, tokens)
        self.branches = [both] if whole else [both.select(i) for i in range(len(texts))]
        self.residual: Any = None  # of the last computed step, [1 or 2, S, dim]
        self.keep_residual = False

    def _run(self, tokens: Tensor, i: int, branches: list[Sources]) -> Tensor:  # [1, S, dim] -> [1 or 2, S, dim]
        modulation = self._rows(1, self.modulation[i : i + 1])
        outputs = [
            self.dit.run_blocks(tokens.expand(b.batch, -1, -1).contiguous(), modulation, self.rotary, b, self.still)
            for b in branches
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _rows(self, which: int, at_step: Tensor) -> Tensor:
        """What `time_embeddings` says of a step, below what it says of tokens at timestep 0 if there are any."""
        return at_step if self.at_zero is None else torch.cat([self.at_zero[which], at_step])

    def velocity(self, latents: Tensor, i: int, step: Step) -> Tensor:  # [C, T', h, w] float32
        inputs = latents if self.channels is None else torch.cat([latents, self.channels])
        tokens = self.dit.patchify(inputs[None])
        branches = self.branches if step.branches == 2 else [self.conditional]
        if step.computed:
            out = self._run(tokens, i, branches)
            self.residual = out - tokens if self.keep_residual else None
        else:
            out = tokens + self.residual[: sum(b.batch for b in branches)]
        output = self.dit.unpatchify(out, self._rows(0, self.time[i : i + 1]), latents.shape, self.still).float()
        if step.branches == 1:
            return output[0]
        conditional, unconditional = output
        return unconditional + self.guidance * (conditional - unconditional)


def _channels(dit: WanDiT, given: Conditioning, shape) -> Tensor | None:
    """What goes into the model beside latents of `shape`; raises InvalidRequest if it is not what the model takes."""
    count = dit.config.in_channels - dit.config.out_channels
    expected = (count, *shape[1:]) if count else None
    found = None if given.channels is None else tuple(given.channels.shape)
    if found != expected:
        raise InvalidRequest("condition channels shape", found, str(expected or "none, as this model takes none"))
    return None if given.channels is None else given.channels.to(dit.device, torch.float32)


def initial_latents(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Gaussian noise of `shape`, float32, drawn on the CPU so that a seed means the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, *shape), generator=generator, dtype=torch.float32)[0]


@dataclass(frozen=True)
class Denoiser:
    """The experts of a checkpoint, from the highest noise to the lowest, and the sigma grid of its layout."""

    experts: tuple[Expert, ...]
    geometry: Geometry
    grid: str = "wan"
    levels: tuple[float, ...] = ()  # of a distilled model's steps, where no grid has them

    @property
    def device(self) -> torch.device:
        """Where the solver's state lives."""
        return self.experts[0].dit.device

    @property
    def engine(self) -> dict:
        """How the DiT computes, for INFO."""
        return dict(self.experts[0].dit.engine)

    @property
    def pictures(self) -> int:
        """Of how many pictures the model looks at the tokens."""
        config = self.experts[0].dit.config
        return (1 + bool(config.image_positions)) if config.image_dim else 0

    def blank(self, text: Tensor, request: GenerationRequest) -> Conditioning:
        """Everything that the model takes beside `text`, empty: for warming up and for measurements."""
        config = self.experts[0].dit.config
        _, *space = self.geometry.latent_shape(request.width, request.height, request.num_frames)
        beyond, width = config.in_channels - config.out_channels, config.image_dim
        return Conditioning(
            text,
            text,
            torch.zeros(beyond, *space) if beyond else None,
            torch.zeros(config.image_positions or CLIP_TOKENS, width) if width else None,
        )

    def schedule(self, request: GenerationRequest, of_clip: bool = False) -> Schedule:
        """All steps of the request, or those that are run on a clip."""
        given = (request.sampler, request.steps, request.flow_shift, self.grid, self.levels)
        if not of_clip:
            return samplers.schedule(*given)
        kept = steps_of_clip(request.steps, request.strength, request.sampler)
        if request.sampler == "euler":
            return samplers.schedule(*given, start=request.strength)
        return samplers.schedule(*given).truncated(request.steps - kept)

    def single_steps(self) -> list[Schedule]:
        """For each expert a schedule of one step that it answers, from just above its lowest timestep."""
        return [Schedule.of(((expert.lowest_timestep + 1) / 1000,), False) for expert in self.experts]

    @torch.inference_mode()
    def plan(self, request: GenerationRequest, schedule: Schedule | None = None) -> Plan:
        """What each step will do, known before the first; InvalidRequest if an expert has no such cache."""
        schedule = schedule or self.schedule(request)
        if schedule.steps < request.steps and request.cache == "magcache" and request.cache_threshold > 0:
            raise InvalidRequest(
                "cache", request.cache, "teacache with a clip: magcache is calibrated for whole schedules"
            )
        each = self.timesteps(schedule)
        chosen = [index for index, own in enumerate(each) for _ in own]
        computed = [c for expert, own in zip(self.experts, each, strict=True) for c in _computed(expert, own, request)]
        steps, span = len(chosen), (request.cache_start, request.cache_end)
        computed = [c or not may_skip(i, steps, *span) for i, c in enumerate(computed)]
        guided = [guided_steps(steps, getattr(request, e.guidance), request.guidance_end) for e in self.experts]
        return tuple(Step(e, c, 1 + (i < guided[e])) for i, (e, c) in enumerate(zip(chosen, computed, strict=True)))

    def timesteps(self, schedule: Schedule) -> list[list[float]]:
        """Those of each expert. They fall, so that one expert's steps follow another's."""
        above = [math.inf, *(expert.lowest_timestep for expert in self.experts)]
        return [[t for t in schedule.timesteps if low <= t < high] for high, low in pairwise(above)]

    @torch.inference_mode()
    def run(
        self,
        conditioning: Conditioning,
        request: GenerationRequest,
        *,
        schedule: Schedule | None = None,
        latents: Tensor | None = None,
        on_step: Callable[[Progress], None] | None = None,
        resume: Resume | None = None,
    ) -> tuple[Tensor, DenoiseInfo]:
        """Run the sampler from noise to latents [C, T', h, w], float32.

        `schedule` is by default that of the request; one that was cut short starts from `latents` at its first noise
        level. `latents` replaces the noise of the seed. An exception from `on_step` (wan.Cancelled) ends the loop. Raises
        InvalidRequest for latents, or a resume point, that do not fit the request.
        """
        schedule = schedule or self.schedule(request, of_clip=conditioning.start is not None)
        plan = self.plan(request, schedule)
        if conditioning.start is not None and resume is None:
            latents = self._noised(request, conditioning.start, latents, schedule.sigmas[0])
        state, start = self._start(request, schedule, latents, resume, plan)
        sampler = samplers.solver(request.sampler, request.seed)
        info = DenoiseInfo(plan, self.engine, start if resume else None)
        active: int | None = None
        evaluator: _Evaluator | None = None

        for i in range(start, len(plan)):
            began, step, x = time.perf_counter(), plan[i], state.latents
            if evaluator is None or step.expert != active:
                active, evaluator = step.expert, None  # the memory of the one before is free first
                evaluator = self._evaluator(plan, active, schedule, conditioning, request, x.shape)
            velocity = evaluator.velocity(conditioning.impose(x), i, step)
            state = sampler(state, velocity, schedule.sigmas, i)
            if x.is_cuda:  # else the loop runs ahead of the GPU: no honest time, no cancel within a step
                torch.cuda.synchronize(x.device)
            info.count(step, time.perf_counter() - began)
            if on_step is not None:
                done = i + 1
                resumable = done < len(plan) and plan[done].computed
                x0, seconds = conditioning.impose(x - schedule.sigmas[i] * velocity), info.step_seconds[-1]
                on_step(Progress(done, len(plan), info.steps_skipped, step.computed, seconds, resumable, state, x0))
        info.engine = self.engine  # as it ran: blocks may have run uncompiled
        return conditioning.impose(state.latents), info

    def _evaluator(
        self, plan: Plan, index: int, schedule: Schedule, conditioning: Conditioning, request, shape
    ) -> _Evaluator:
        expert, steps = self.experts[index], [step for step in plan if step.expert == index]
        texts: list[Any] = [conditioning.text]
        if any(step.branches == 2 for step in steps):
            texts.append(conditioning.negative_text)
        guidance = getattr(request, expert.guidance)
        evaluator = _Evaluator(expert.dit, schedule.timesteps, texts, guidance, shape, conditioning)
        evaluator.keep_residual = not all(step.computed for step in steps)
        return evaluator

    def _noised(self, request: GenerationRequest, clip: Tensor, noise: Tensor | None, sigma: float) -> Tensor:
        """The latents of a clip at a noise level; raises InvalidRequest if they are not those of such a video."""
        shape = self.geometry.latent_shape(request.width, request.height, request.num_frames)
        if tuple(clip.shape) != shape:
            raise InvalidRequest("clip latents shape", tuple(clip.shape), str(shape))
        noise = initial_latents(request.seed, shape) if noise is None else noise.cpu()
        return (1 - sigma) * clip.cpu() + sigma * noise

    def _start(
        self, request: GenerationRequest, schedule: Schedule, latents, resume: Resume | None, plan
    ) -> tuple[SamplerState, int]:
        """The solver's first state and the first step to run."""
        shape = self.geometry.latent_shape(request.width, request.height, request.num_frames)
        if resume is not None:
            if tuple(resume.state.latents.shape) != shape:
                raise InvalidRequest("checkpoint latents shape", tuple(resume.state.latents.shape), str(shape))
            if not 0 < resume.step < len(plan) or not plan[resume.step].computed:
                raise InvalidRequest("checkpoint step", resume.step, "a step whose successor is computed in full")
            tensors = {name: t.to(self.device) for name, t in resume.state.tensors().items()}
            return SamplerState.from_tensors(tensors), resume.step
        if latents is None:
            latents = initial_latents(request.seed, shape)
            if self.levels:  # students that start below pure noise were trained with as much of it
                latents = schedule.sigmas[0] * latents
        if tuple(latents.shape) != shape:
            raise InvalidRequest("latents shape", tuple(latents.shape), str(shape))
        return SamplerState(latents.to(self.device, torch.float32)), 0


def _computed(expert: Expert, timesteps: list[float], request: GenerationRequest) -> tuple[bool, ...]:
    """Which of an expert's steps are computed; its first always is, as no residual survives a switch."""
    if request.cache_threshold == 0 or not timesteps:
        return (True,) * len(timesteps)
    cache = expert.caches.get(request.cache)
    if cache is None:
        allowed = f"0, as this checkpoint has no {request.cache} calibration; see python -m wan.calibrate"
        raise InvalidRequest("cache_threshold", request.cache_threshold, allowed)
    return cache.plan(*expert.dit.time_embeddings(timesteps), request.cache_threshold)
