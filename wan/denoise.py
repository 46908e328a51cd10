"""The denoise loop: schedule, experts, guidance, caches and solver, with a hook after every step.

A checkpoint's denoiser is a list of experts, each answering for a range of timesteps (one for Wan 2.1). Whatever is
computed from an expert's weights (time embeddings, keys and values, cached residuals) lives as long as that expert is
active; the solver's state runs through all of them.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from contract.geometry import Geometry
from contract.parameters import GenerationRequest, guided_steps, may_skip, steps_of_clip
from wan import adapted, samplers
from wan.dit import WanDiT
from wan.errors import InvalidRequest
from wan.evaluator import Conditioning, Evaluator, Span, Step, batch_branches
from wan.lora import Lora
from wan.samplers import SamplerState, Schedule
from wan.teacache import StepCache

CLIP_TOKENS = 257  # of one picture, where only the number of them matters
GUIDANCE = ("guidance_scale", "guidance_scale_2")  # the parameter that holds each expert's guidance scale
NO_ADAPTERS: Mapping[str, Sequence[Lora | None]] = {}


@dataclass(frozen=True)
class Expert:
    """A DiT, the timesteps it answers for (from `lowest_timestep` up to the expert before it) and its calibrated caches.

    `guidance` names the request's parameter that holds its guidance scale.
    """

    dit: WanDiT
    caches: Mapping[str, StepCache] = field(default_factory=dict)
    lowest_timestep: float = 0.0
    guidance: str = GUIDANCE[0]


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
    attention_ms: dict = field(default_factory=dict)
    steps_computed: int = 0
    steps_skipped: int = 0
    forwards: int = 0
    step_seconds: list[float] = field(default_factory=list)

    def count(self, step: Step, seconds: float) -> None:
        self.step_seconds.append(seconds)
        self.steps_computed += step.computed
        self.steps_skipped += not step.computed
        self.forwards += step.computed * step.branches


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
    evaluators: Callable[[WanDiT, Span], Evaluator] = Evaluator  # what evaluates an expert's steps, here or on ranks

    @property
    def device(self) -> torch.device:
        """Where the solver's state lives."""
        return self.experts[0].dit.device

    @property
    def engine(self) -> dict:
        """How the DiT computes, for INFO."""
        return dict(self.experts[0].dit.engine)

    @property
    def attention_ms(self) -> dict[str, float]:
        """Milliseconds of the backends that attention was chosen from by measurement, for INFO."""
        return dict(self.experts[0].dit.attention_ms)

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
        adapters: Mapping[str, Sequence[Lora | None]] = NO_ADAPTERS,
    ) -> tuple[Tensor, DenoiseInfo]:
        """Run the sampler from noise to latents [C, T', h, w], float32.

        `schedule` is by default that of the request; one that was cut short starts from `latents` at its first noise
        level. `latents` replaces the noise of the seed. An exception from `on_step` (wan.Cancelled) ends the loop. `adapters`
        has those that the request names, one for each expert. Raises InvalidRequest for latents, or a resume point, that do
        not fit the request, and for an adapter that is not there.
        """
        beside = self._beside(request, adapters)
        schedule = schedule or self.schedule(request, of_clip=conditioning.start is not None)
        plan = self.plan(request, schedule)
        if conditioning.start is not None and resume is None:
            latents = self._noised(request, conditioning.start, latents, schedule.sigmas[0])
        state, start = self._start(request, schedule, latents, resume, plan)
        sampler = samplers.solver(request.sampler, request.seed)
        info = DenoiseInfo(plan, self.engine, start if resume else None, self.attention_ms)
        evaluator: Evaluator | None = None

        with ExitStack() as active:
            for i in range(start, len(plan)):
                began, step, x = time.perf_counter(), plan[i], state.latents
                if evaluator is None or step.expert != plan[i - 1].expert:
                    evaluator = None
                    active.close()  # the memory of the one before is free first
                    evaluator = active.enter_context(
                        self._evaluator(plan, step.expert, schedule, conditioning, request, x.shape, beside)
                    )
                velocity = evaluator.velocity(conditioning.impose(x), i, step)
                state = sampler(state, velocity, schedule.sigmas, i)
                if x.is_cuda:  # else the loop runs ahead of the GPU: no honest time, no cancel within a step
                    torch.cuda.synchronize(x.device)
                info.count(step, time.perf_counter() - began)
                if on_step is not None:
                    done = i + 1
                    resumable = done < len(plan) and plan[done].computed
                    x0 = conditioning.impose(x - schedule.sigmas[i] * velocity)
                    seconds = info.step_seconds[-1]
                    on_step(Progress(done, len(plan), info.steps_skipped, step.computed, seconds, resumable, state, x0))
        info.engine = self.engine  # as it ran: blocks may have run uncompiled
        return conditioning.impose(state.latents), info

    def _beside(
        self, request: GenerationRequest, adapters: Mapping[str, Sequence[Lora | None]]
    ) -> list[list[tuple[Lora, float]]]:
        """For each expert the adapters of the request, with their strengths."""
        beside: list[list[tuple[Lora, float]]] = [[] for _ in self.experts]
        for adapter in request.lora:
            if adapter.name not in adapters:
                raise InvalidRequest(
                    "lora", adapter.name, f"adapters that were loaded: {', '.join(adapters) or 'none'}"
                )
            for own, lora in zip(beside, adapters[adapter.name], strict=True):
                own += [(lora, adapter.strength)] if lora and adapter.strength else []
        return beside

    @contextmanager
    def _evaluator(
        self, plan: Plan, index: int, schedule: Schedule, conditioning: Conditioning, request, shape, beside
    ) -> Iterator[Evaluator]:
        expert, steps = self.experts[index], [step for step in plan if step.expert == index]
        texts: list[Any] = [conditioning.text]
        if any(step.branches == 2 for step in steps):
            texts.append(conditioning.negative_text)
        span = Span(
            index, schedule.timesteps, tuple(texts), getattr(request, expert.guidance), tuple(shape),
            conditioning.channels, conditioning.image_tokens, not all(step.computed for step in steps),
            len(texts) == 2 and batch_branches(expert.dit, expert.dit.rotary(shape).shape[1]),
            conditioning.first is not None, tuple(beside[index]),
        )  # fmt: skip
        with adapted.applied(expert.dit, beside[index]):
            yield self.evaluators(expert.dit, span)

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
