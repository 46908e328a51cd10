"""Flow-matching schedules and solvers.

x_sigma = (1 - sigma) x0 + sigma noise; the model predicts v = noise - x0, so x0 = x - sigma v. A solver is a pure
function of its state: the latents and the last x0 predictions, all float32, which is what a checkpoint stores.

UniPC: Zhao et al. 2023 (order 2, bh2, x0 prediction, corrector always on). DPM-Solver++ 2M: Lu et al. 2022.
"""

import math
from dataclasses import dataclass, field, replace

from torch import Tensor

from wan.errors import InvalidRequest

GRIDS = ("wan", "diffusers")


@dataclass(frozen=True)
class Schedule:
    """Noise levels of a run: `sigmas` has one entry more than `timesteps` and ends with 0."""

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.timesteps)


def shifted(sigma: float, shift: float) -> float:
    return shift * sigma / (1 + (shift - 1) * sigma)


def _linspace(start: float, stop: float, steps: int) -> list[float]:
    """`steps` points from `start`, the next one being `stop`."""
    return [start + (stop - start) * i / steps for i in range(steps)]


def schedule(sampler: str, steps: int, flow_shift: float, grid: str = "wan") -> Schedule:
    """Sigmas and model timesteps of `sampler`.

    The reference implementations disagree in detail, and each checkpoint layout keeps its own: for UniPC the official
    code starts at 0.999 and ends at 0, Diffusers starts at 1 and ends at 0.001. Both cut the timesteps to integers;
    Euler keeps them.
    """
    if sampler not in SAMPLERS:
        raise InvalidRequest("sampler", sampler, ", ".join(SAMPLERS))
    if sampler == "unipc":
        start, stop = (0.999, 0.0) if grid == "wan" else (1.0, 0.001)
        sigmas = [shifted(s, flow_shift) for s in _linspace(start, stop, steps)]
        if sigmas[0] == 1.0:
            sigmas[0] -= 1e-6  # log((1 - sigma) / sigma) must be finite
    else:
        sigmas = [shifted(s, flow_shift) for s in _linspace(1.0, 0.0, steps)]
    timesteps = [1000 * s for s in sigmas]
    if sampler != "euler":
        timesteps = [float(int(t)) for t in timesteps]
    return Schedule(tuple(sigmas) + (0.0,), tuple(timesteps))


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
    base = (sigma / last) * state.anchor - alpha * b * m_last
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


SAMPLERS = {"unipc": unipc, "euler": euler, "dpm++": dpm_plus_plus}
