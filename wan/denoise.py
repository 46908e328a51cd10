"""The denoise loop: schedule, model, guidance, cache and solver, with a hook after every step."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wan import samplers, teacache
from wan.dit import Conditioning, WanDiT
from wan.errors import InvalidRequest
from wan.request import GenerationRequest
from wan.samplers import SamplerState, Schedule
from wan.teacache import StepCache

# Above this many tokens one forward fills the machine and two branches at once only cost memory.
MAX_BATCHED_TOKENS = 8192
MAX_MEMORY_SHARE = 0.5  # of what is free, for the activations of a batch


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
    """What a run did: `plan` has one entry a step (True: computed), `forwards` counts single-sample model evaluations."""

    steps_computed: int = 0
    steps_skipped: int = 0
    forwards: int = 0
    resumed_from: int | None = None
    step_seconds: list[float] = field(default_factory=list)
    plan: tuple[bool, ...] = ()
    engine: dict = field(default_factory=dict)


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


class _Model:
    """The DiT with what stays the same over a request; evaluates one step, both guidance branches."""

    def __init__(self, dit: WanDiT, schedule: Schedule, texts: list[Tensor], guidance: float, shape):
        self.dit, self.guidance = dit, guidance
        self.time, self.modulation = dit.time_embeddings(schedule.timesteps)
        self.rotary = dit.rotary(shape)
        both = dit.conditioning(torch.stack(texts).to(dit.device))
        self.conditional = both.select(0)
        tokens = shape[1] * shape[2] * shape[3] // 4
        whole = len(texts) == 1 or batch_branches(dit, tokens)
        self.branches = [both] if whole else [both.select(i) for i in range(len(texts))]
        self.residual: Tensor | None = None  # of the last computed step, [1 or 2, S, dim]
        self.keep_residual = False

    def _run(self, tokens: Tensor, i: int, branches: list[Conditioning]) -> Tensor:  # [1, S, dim] -> [1 or 2, S, dim]
        modulation = self.modulation[i : i + 1]
        outputs = [
            self.dit.run_blocks(tokens.expand(b.batch, -1, -1).contiguous(), modulation, self.rotary, b)
            for b in branches
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def velocity(self, latents: Tensor, i: int, compute: bool, guided: bool) -> Tensor:  # [C, T', h, w] float32
        tokens = self.dit.patchify(latents[None])
        branches = self.branches if guided else [self.conditional]
        if compute:
            out = self._run(tokens, i, branches)
            self.residual = out - tokens if self.keep_residual else None
        else:
            out = tokens + self.residual[: sum(b.batch for b in branches)]
        output = self.dit.unpatchify(out, self.time[i : i + 1], latents.shape).float()
        if not guided:
            return output[0]
        conditional, unconditional = output
        return unconditional + self.guidance * (conditional - unconditional)


def initial_latents(request: GenerationRequest, channels: int) -> Tensor:
    """Gaussian noise [C, T', h, w], float32, drawn on the CPU so that a seed means the same on every device."""
    generator = torch.Generator().manual_seed(request.seed)
    return torch.randn((1, *request.latent_shape(channels)), generator=generator, dtype=torch.float32)[0]


def computed_steps(
    dit: WanDiT, schedule: Schedule, cache_model: StepCache | None, request: GenerationRequest
) -> tuple[bool, ...]:
    """The plan of computed steps; raises InvalidRequest if a cache is asked for that is not calibrated."""
    if request.cache_threshold == 0:
        return teacache.everything(schedule.steps)
    if cache_model is None:
        allowed = f"0, as this checkpoint has no {request.cache} calibration; see python -m wan.calibrate"
        raise InvalidRequest("cache_threshold", request.cache_threshold, allowed)
    return cache_model.plan(*dit.time_embeddings(schedule.timesteps), request.cache_threshold)


def schedule_of(request: GenerationRequest, grid: str) -> Schedule:
    """The noise levels and timesteps of a request, on the grid of the checkpoint's layout."""
    return samplers.schedule(request.sampler, request.steps, request.flow_shift, grid)


def guided_steps(request: GenerationRequest, steps: int) -> int:
    """How many of `steps`, counted from the first, use guidance."""
    share = round(request.guidance_end * steps, 6)  # 0.55 of 20 is 11, not a little more
    return 0 if request.guidance_scale == 1.0 else math.ceil(share)


@torch.inference_mode()
def denoise(
    dit: WanDiT,
    context: Tensor,
    negative_context: Tensor | None,
    request: GenerationRequest,
    *,
    schedule: Schedule | None = None,
    cache_model: StepCache | None = None,
    latents: Tensor | None = None,
    on_step: Callable[[Progress], None] | None = None,
    resume: Resume | None = None,
) -> tuple[Tensor, DenoiseInfo]:
    """Run the sampler from noise to latents [C, T', h, w], float32.

    `context` and `negative_context` are text embeddings [L, text_dim] with zero rows as padding; the latter is not
    used at guidance 1. `schedule` is by default that of the request on the official grid; one that was cut short
    starts from `latents` at its first noise level. `latents` replaces the noise of the seed. An exception from `on_step` (wan.Cancelled) ends the
    loop. Raises InvalidRequest for latents, or a resume point, that do not fit the request.
    """
    schedule = schedule or schedule_of(request, "wan")
    plan = computed_steps(dit, schedule, cache_model, request)
    shape = request.latent_shape(dit.config.out_channels)
    state, start = _start(request, shape, latents, resume, plan, dit.device)
    guided = guided_steps(request, schedule.steps)
    texts = [context] if guided == 0 else [context, negative_context]
    model = _Model(dit, schedule, texts, request.guidance_scale, shape)
    model.keep_residual = not all(plan)
    step_sampler = samplers.SAMPLERS[request.sampler]
    info = DenoiseInfo(resumed_from=start if resume else None, plan=plan, engine=dict(dit.engine))

    for i in range(start, schedule.steps):
        began = time.perf_counter()
        x = state.latents
        velocity = model.velocity(x, i, plan[i], guided=i < guided)
        state = step_sampler(state, velocity, schedule.sigmas, i)
        if x.is_cuda:  # else the loop runs ahead of the GPU: no honest time, no cancel within a step
            torch.cuda.synchronize(x.device)
        _count(info, time.perf_counter() - began, plan[i], guided=i < guided)
        if on_step is not None:
            done = i + 1
            resumable = done < schedule.steps and plan[done]
            x0 = x - schedule.sigmas[i] * velocity
            seconds = info.step_seconds[-1]
            on_step(Progress(done, schedule.steps, info.steps_skipped, plan[i], seconds, resumable, state, x0))
    return state.latents, info


def _count(info: DenoiseInfo, seconds: float, computed: bool, guided: bool) -> None:
    info.step_seconds.append(seconds)
    info.steps_computed += computed
    info.steps_skipped += not computed
    info.forwards += computed * (2 if guided else 1)


def _start(request, shape, latents, resume: Resume | None, plan, device) -> tuple[SamplerState, int]:
    """The solver's first state and the first step to run."""
    if resume is not None:
        if tuple(resume.state.latents.shape) != shape:
            raise InvalidRequest("checkpoint latents shape", tuple(resume.state.latents.shape), str(shape))
        if not 0 < resume.step < len(plan) or not plan[resume.step]:
            raise InvalidRequest("checkpoint step", resume.step, "a step whose successor is computed in full")
        tensors = {name: t.to(device) for name, t in resume.state.tensors().items()}
        return SamplerState.from_tensors(tensors), resume.step
    if latents is None:
        latents = initial_latents(request, shape[0])
    if tuple(latents.shape) != shape:
        raise InvalidRequest("latents shape", tuple(latents.shape), str(shape))
    return SamplerState(latents.to(device, torch.float32)), 0
