"""The denoise loop: schedule, model, guidance, cache and solver, with a hook after every step."""

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

# Above this many tokens one forward fills the machine and two branches at once only cost memory.
MAX_BATCHED_TOKENS = 8192


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
    steps_computed: int = 0
    steps_skipped: int = 0
    resumed_from: int | None = None
    step_seconds: list[float] = field(default_factory=list)


class _Model:
    """The DiT with what stays the same over a request; evaluates one step, both guidance branches."""

    def __init__(self, dit: WanDiT, schedule: Schedule, context: Tensor, negative: Tensor | None, guidance: float, shape):
        self.dit, self.guidance = dit, guidance
        self.timesteps = torch.tensor(schedule.timesteps, dtype=torch.float64, device=dit.device)
        self.time, self.modulation = dit.time_embeddings(self.timesteps)
        self.rotary = dit.rotary(shape)
        branches = [context] if negative is None else [context, negative]
        both = dit.conditioning(torch.stack(branches).to(dit.device))
        tokens = shape[1] * shape[2] * shape[3] // 4
        self.branches = [both] if tokens * len(branches) <= MAX_BATCHED_TOKENS else [both.select(i) for i in range(len(branches))]
        self.residuals: list[Tensor | None] = [None] * len(self.branches)

    def _evaluate(self, branch: int, conditioning: Conditioning, latents: Tensor, i: int, compute: bool) -> Tensor:
        tokens = self.dit.patchify(latents).expand(conditioning.batch, -1, -1)
        if compute:
            out = self.dit.run_blocks(tokens, self.modulation[i : i + 1], self.rotary, conditioning)
            self.residuals[branch] = out - tokens if self.keep_residual else None
        else:
            out = tokens + self.residuals[branch]
        return self.dit.unpatchify(out, self.time[i : i + 1], latents.shape).float()

    keep_residual = False

    def velocity(self, latents: Tensor, i: int, compute: bool) -> Tensor:  # [C, T', h, w] float32
        outputs = [self._evaluate(n, c, latents[None], i, compute) for n, c in enumerate(self.branches)]
        output = torch.cat(outputs)
        if output.shape[0] == 1:
            return output[0]
        conditional, unconditional = output
        return unconditional + self.guidance * (conditional - unconditional)


def initial_latents(request: GenerationRequest, channels: int) -> Tensor:
    """Gaussian noise [C, T', h, w], float32, drawn on the CPU so that a seed means the same on every device."""
    generator = torch.Generator().manual_seed(request.seed)
    return torch.randn((1, *request.latent_shape(channels)), generator=generator, dtype=torch.float32)[0]


def computed_steps(
    dit: WanDiT, schedule: Schedule, cache_model: teacache.TeaCacheModel | None, threshold: float
) -> tuple[bool, ...]:
    """The plan of computed steps; raises InvalidRequest if a cache is asked of a checkpoint that has no polynomial."""
    if threshold == 0:
        return teacache.everything(schedule.steps)
    if cache_model is None:
        raise InvalidRequest("cache_threshold", threshold, "0, as this checkpoint has no TeaCache polynomial; calibrate one")
    timesteps = torch.tensor(schedule.timesteps, dtype=torch.float64, device=dit.device)
    return teacache.plan(cache_model, *dit.time_embeddings(timesteps), threshold)


@torch.inference_mode()
def denoise(
    dit: WanDiT,
    context: Tensor,
    negative_context: Tensor | None,
    request: GenerationRequest,
    *,
    grid: str = "wan",
    cache_model: teacache.TeaCacheModel | None = None,
    latents: Tensor | None = None,
    on_step: Callable[[Progress], None] | None = None,
    resume: Resume | None = None,
) -> tuple[Tensor, DenoiseInfo]:
    """Run the sampler from noise to latents [C, T', h, w], float32.

    `context` and `negative_context` are text embeddings [L, text_dim] with zero rows as padding; the latter is not
    used at guidance 1. `latents` replaces the noise of the seed. An exception from `on_step` (wan.Cancelled) ends the
    loop. Raises InvalidRequest for latents, or a resume point, that do not fit the request.
    """
    schedule = samplers.schedule(request.sampler, request.steps, request.flow_shift, grid)
    plan = computed_steps(dit, schedule, cache_model, request.cache_threshold)
    shape = request.latent_shape(dit.config.in_channels)
    state, start = _start(request, shape, latents, resume, plan, dit.device)
    guided = request.guidance_scale != 1.0
    model = _Model(dit, schedule, context, negative_context if guided else None, request.guidance_scale, shape)
    model.keep_residual = not all(plan)
    step_sampler = samplers.SAMPLERS[request.sampler]
    info = DenoiseInfo(resumed_from=start if resume else None)

    for i in range(start, schedule.steps):
        began = time.perf_counter()
        x = state.latents
        velocity = model.velocity(x, i, plan[i])
        state = step_sampler(state, velocity, schedule.sigmas, i)
        info.step_seconds.append(time.perf_counter() - began)
        info.steps_computed += plan[i]
        info.steps_skipped += not plan[i]
        if on_step is not None:
            done = i + 1
            resumable = done < schedule.steps and plan[done]
            x0 = x - schedule.sigmas[i] * velocity
            on_step(Progress(done, schedule.steps, info.steps_skipped, plan[i], info.step_seconds[-1], resumable, state, x0))
    return state.latents, info


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
