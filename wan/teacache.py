"""TeaCache for Wan: which denoising steps are computed and which reuse the last residual.

Liu et al., Timestep Embedding Tells (arXiv:2411.19108), as in TeaCache4Wan2.1: the relative change of the timestep
embedding from one denoising step to the next, rescaled by a polynomial, is summed up; while the sum stays below the
threshold the blocks are skipped and their last residual is added instead. A larger threshold skips more.

For Wan the signal depends on the timestep alone, so the whole plan is known before the first step.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class StepCache(Protocol):
    """Decides before the loop which steps are computed."""

    def plan(self, time: Tensor, modulation: Tensor, threshold: float) -> tuple[bool, ...]:
        """True for each computed step, given the time embeddings of all steps, [N, dim] and [N, 6, dim]."""


@dataclass(frozen=True)
class TeaCacheModel:
    """How a checkpoint's embedding change relates to its output change.

    `coefficients` of the polynomial, highest power first. `retention` uses the block modulation as signal, computes
    the first 5 steps and may skip the last; otherwise the signal is the time embedding, and first and last step are
    computed.
    """

    coefficients: tuple[float, ...]
    retention: bool = False

    def __post_init__(self):
        object.__setattr__(self, "coefficients", tuple(float(c) for c in self.coefficients))

    def plan(self, time: Tensor, modulation: Tensor, threshold: float) -> tuple[bool, ...]:
        """See `plan` below."""
        return plan(self, time, modulation, threshold)


OFFICIAL = {
    ("t2v-1.3b", True): (-5.21862437e04, 9.23041404e03, -5.28275948e02, 1.36987616e01, -4.99875664e-02),
    ("t2v-1.3b", False): (2.39676752e03, -1.31110545e03, 2.01331979e02, -8.29855975e00, 1.37887774e-01),
    ("t2v-14b", True): (-3.03318725e05, 4.90537029e04, -2.65530556e03, 5.87365115e01, -3.15583525e-01),
    ("t2v-14b", False): (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
    ("i2v-14b-480p", True): (2.57151496e05, -3.54229917e04, 1.40286849e03, -1.35890334e01, 1.32517977e-01),
    ("i2v-14b-480p", False): (-3.02331670e02, 2.23948934e02, -5.25463970e01, 5.87348440e00, -2.01973289e-01),
    ("i2v-14b-720p", True): (8.10705460e03, 2.13393892e03, -3.72934672e02, 1.66203073e01, -4.17769401e-02),
    ("i2v-14b-720p", False): (-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683),
}  # (variant, retention) -> coefficients; they were fitted for 50 (T2V) and 40 (I2V) steps
RETAINED_STEPS = 5


def official(variant: str, retention: bool | None = None, expert: int = 0) -> TeaCacheModel | None:
    """The published polynomial of a variant, by default in the mode its authors recommend; None if there is none.

    None was published for two experts.
    """
    if expert:
        return None
    if retention is None:
        retention = variant != "t2v-1.3b"
    coefficients = OFFICIAL.get((variant, retention))
    return TeaCacheModel(coefficients, retention) if coefficients else None


def relative_changes(signal: Tensor) -> list[float]:
    """mean|S_i - S_{i-1}| / mean|S_{i-1}| for i >= 1 of step signals [N, ...]."""
    signal = signal.double().flatten(1)
    change = (signal[1:] - signal[:-1]).abs().mean(1) / signal[:-1].abs().mean(1)
    return change.tolist()


def polynomial(coefficients: tuple[float, ...], x: float) -> float:
    value = 0.0
    for c in coefficients:
        value = value * x + c
    return value


def plan(model: TeaCacheModel, time: Tensor, modulation: Tensor, threshold: float) -> tuple[bool, ...]:
    """True for each step that is computed, given the time embeddings of all steps, [N, dim] and [N, 6, dim]."""
    steps = time.shape[0]
    changes = relative_changes(modulation if model.retention else time) if steps > 1 else []
    always = (lambda i: i < RETAINED_STEPS) if model.retention else (lambda i: i in (0, steps - 1))
    computed, distance = [], 0.0
    for i in range(steps):
        if not always(i):
            distance += polynomial(model.coefficients, changes[i - 1])
            if distance < threshold:
                computed.append(False)
                continue
        computed.append(True)
        distance = 0.0
    return tuple(computed)


def fit(changes: list[float], output_changes: list[float], degree: int = 4) -> tuple[float, ...]:
    """Least-squares polynomial from embedding changes to output changes, highest power first."""
    x = torch.tensor(changes, dtype=torch.float64)
    powers = torch.stack([x**d for d in range(degree, -1, -1)], dim=1)
    y = torch.tensor(output_changes, dtype=torch.float64).unsqueeze(1)
    return tuple(torch.linalg.lstsq(powers, y, driver="gelsd").solution.squeeze(1).tolist())
