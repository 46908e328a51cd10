"""Flow-matching schedules and solvers.

x_sigma = (1 - sigma) x0 + sigma noise; the model predicts v = noise - x0, so x0 = x - sigma v. A solver is a pure
function of its state: the latents and the last x0 predictions, all float32, which is what a checkpoint stores; one that
draws noise draws it from the seed and the step, so that it continues as it began.

UniPC: Zhao et al. 2023 (order 2, bh2, x0 prediction, corrector always on). DPM-Solver++ 2M: Lu et al. 2022.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wan.errors import InvalidRequest

FLOAT_TIMESTEPS = ("euler", "renoise")
GRIDS = ("wan", "diffusers")
OFFICIAL_TOP = 0.9990000128746033  # float32(0.999): the official training grid's largest sigma is kept in float32


@dataclass(frozen=True)
class Schedule:
    """Noise levels of a run and the timestep that the model is told at each.

    `sigmas` fall from the level at which the run starts to 0 and are one more than `timesteps`.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    @classmethod
    def of(cls, levels: Sequence[float], whole_timesteps: bool) -> "Schedule":
        """A step from each of `levels` to the next and from the last to 0; timesteps cut to integers if asked."""
        timesteps = [1000 * level for level in levels]
        return cls((*levels, 0.0), tuple(float(int(t)) for t in timesteps) if whole_timesteps else tuple(timesteps))

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def truncated(self, start: int) -> "Schedule":
        """The steps from `start` on, for content that is already at noise level sigmas[start].

        Raises InvalidRequest if no step would be left.
        """
        if not 0 <= start < self.steps:
            raise InvalidRequest("first step", start, f"0 to {self.steps - 1}")
        return Schedule(self.sigmas[start:], self.timesteps[start:])


def shifted(sigma: float, shift: float) -> float:
    return shift * sigma / (1 + (shift - 1) * sigma)


def _linspace(start: float, stop: float, steps: int) -> list[float]:
    """`steps` points from `start`, the next one being `stop`; rounded as numpy does, which decides on integers."""
    step = (stop - start) / steps
    return [i * step + start for i in range(steps)]


def schedule(
    sampler: str,
    steps: int,
    flow_shift: float,
    grid: str = "wan",
    levels: tuple[float, ...] = (),
    start: float = 1.0,
) -> Schedule:
    """Sigmas and model timesteps of `sampler`; `levels`, if they suffice, take the place of a grid with a shift.

    `start` scales the levels of a grid before they are shifted.

    The reference implementations disagree in detail, and each checkpoint layout keeps its own: for UniPC the official
    code starts at 0.999 and ends at 0, Diffusers starts at 1 and ends at 0.001. Both cut the timesteps to integers;
    Euler and renoise keep them.
    """
    if sampler not in SAMPLERS:
        raise InvalidRequest("sampler", sampler, ", ".join(SAMPLERS))
    if steps <= len(levels) and sampler in FLOAT_TIMESTEPS and start == 1:  # fewer take the head of the list
        return Schedule.of(levels[:steps], whole_timesteps=False)
    top, bottom = 1.0, 0.0
    if sampler == "unipc":
        top, bottom = (OFFICIAL_TOP, 0.0) if grid == "wan" else (1.0, 0.001)
    sigmas = [shifted(s, flow_shift) for s in _linspace(start * top, bottom, steps)]
    if sampler == "unipc" and abs(sigmas[0] - 1.0) < 1e-6:
        sigmas[0] -= 1e-6  # log((1 - sigma) / sigma) must be finite
    return Schedule.of(sigmas, whole_timesteps=sampler not in FLOAT_TIMESTEPS)


@dataclass(frozen=True)
class SamplerState:
    """Everything a solver carries from step to step; tensors are float32 of the latents' shape.

    `history` holds up to two x0 predictions, newest last; `anchor` is the sample the last prediction started from.
    """

    latents: Tensor
    history: tuple[Tensor, ...] = field(default_factory=tuple)
    anchor: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        named = {"latents": self.latents} | {f"history.{i}": h for i, h in enumerate(self.history)}
        return named | ({"anchor": self.anchor} if self.anchor is not None else {})

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "SamplerState":
        history = tuple(tensors[f"history.{i}"] for i in range(2) if f"history.{i}" in tensors)
        return cls(tensors["latents"], history, tensors.get("anchor"))


def _log_snr(sigma: float) -> float:
    """Half the log signal-to-noise ratio, ln((1 - sigma) / sigma); infinite at the ends of the range."""
    if sigma <= 0:
        return math.inf
    return math.log((1 - sigma) / sigma) if sigma < 1 else -math.inf


def euler(state: SamplerState, velocity: Tensor, sigmas: tuple[float, ...], i: int) -> SamplerState:
    return replace(state, latents=state.latents + (sigmas[i + 1] - sigmas[i]) * velocity)


def noise(seed: int, step: int, shape: tuple[int, ...]) -> Tensor:
    """Fresh noise of a step, float32, drawn on the CPU; other than what the run of any seed starts from."""
    digest = hashlib.sha256(f"{seed} {step}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def renoise(state: SamplerState, velocity: Tensor, sigmas: tuple[float, ...], i: int, seed: int = 0) -> SamplerState:
    """The prediction with fresh noise at the next level, as consistency and DMD students are trained to continue."""
    x0, sigma_next = state.latents - sigmas[i] * velocity, sigmas[i + 1]
    if sigma_next == 0:
        return SamplerState(x0)
    fresh = noise(seed, i, tuple(x0.shape)).to(x0)
    return SamplerState((1 - sigma_next) * x0 + sigma_next * fresh)


def dpm_plus_plus(state: SamplerState, velocity: Tensor, sigmas: tuple[float, ...], i: int) -> SamplerState:
    """DPM-Solver++ 2M; first and last step are of order 1."""
    x, sigma, sigma_next = state.latents, sigmas[i], sigmas[i + 1]
    x0 = x - sigma * velocity
    second_order = 0 < i < len(sigmas) - 2
    direction = x0
    if second_order:
        h = _log_snr(sigma_next) - _log_snr(sigma)
        h_last = _log_snr(sigma) - _log_snr(sigmas[i - 1])
        if math.isfinite(h_last):  # infinite after sigma = 1: the correction vanishes
            direction = x0 + 0.5 * h / h_last * (x0 - state.history[-1])
    ratio = sigma_next / sigma
    # -alpha_next (exp(-h) - 1) written with sigmas, so that sigma 0 and 1 need no limits
    weight = (1 - sigma_next) - ratio * (1 - sigma)
    return SamplerState(ratio * x + weight * direction, (x0,))


def _unipc_corrector(state: SamplerState, x0: Tensor, sigmas: tuple[float, ...], i: int) -> Tensor:
    """The sample at step i, recomputed with the model's answer there."""
    sigma, last = sigmas[i], sigmas[i - 1]
    h = _log_snr(sigma) - _log_snr(last)
    b = math.expm1(-h)
    alpha = 1 - sigma
    m_last = state.history[-1]
    anchor: Any = state.anchor  # the prediction before this correction has set it
    base = (sigma / last) * anchor - alpha * b * m_last
    if len(state.history) == 1:  # the prediction was of order 1
        return base - alpha * b * 0.5 * (x0 - m_last)
    r = (_log_snr(sigmas[i - 2]) - _log_snr(last)) / h
    g1 = b / -h - 1
    g2 = g1 / -h - 0.5
    b1, b2 = g1 / b, 2 * g2 / b
    rho_old = (b1 - b2) / (1 - r)
    rho_new = b1 - rho_old
    return base - alpha * b * (rho_old / r * (state.history[-2] - m_last) + rho_new * (x0 - m_last))


def unipc(state: SamplerState, velocity: Tensor, sigmas: tuple[float, ...], i: int) -> SamplerState:
    steps = len(sigmas) - 1
    sigma, sigma_next = sigmas[i], sigmas[i + 1]
    x0 = state.latents - sigma * velocity
    x = _unipc_corrector(state, x0, sigmas, i) if i > 0 else state.latents
    if i == steps - 1:
        return SamplerState(x0, (x0,), x)
    h = _log_snr(sigma_next) - _log_snr(sigma)
    b = math.expm1(-h)
    alpha = 1 - sigma_next
    prediction = (sigma_next / sigma) * x - alpha * b * x0
    order_two = 0 < i < steps - 1
    if order_two:
        previous = state.history[-1]
        r = (_log_snr(sigmas[i - 1]) - _log_snr(sigma)) / h
        prediction = prediction - alpha * b * 0.5 / r * (previous - x0)
    return SamplerState(prediction, (state.history[-1], x0) if order_two else (x0,), x)


SAMPLERS = {"unipc": unipc, "euler": euler, "dpm++": dpm_plus_plus, "renoise": renoise}


def solver(sampler: str, seed: int) -> Callable[[SamplerState, Tensor, tuple[float, ...], int], SamplerState]:
    """One step of `sampler` in a run of `seed`."""
    return partial(renoise, seed=seed) if sampler == "renoise" else SAMPLERS[sampler]
