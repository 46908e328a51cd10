"""Predicted GPU-seconds of a request, the unit in which jobs are admitted, ordered and shared out.

    seconds = factor x (overhead + computed steps + skipped steps + decoding)
    decoding = per_latent_frame x ((T - 1) / 4 + 1) + T x (per_pixel x H x W + per_pixel_squared x (H x W)^2)
    computed step = per_step + branches x (per_token x S + per_token_squared x S^2)
    skipped step  = per_skipped_step + branches x per_skipped_token x S

S is the sequence length of the DiT, ((T - 1) / 4 + 1) x (H / 16) x (W / 16); the linear term stands for the matrix products,
the square ones for attention; branches is 2 while guidance is on. The coefficients, and which steps a cache computes
at which threshold, come from a JSON file that `python -m wan.cost CHECKPOINT --out FILE` measures on the machine that
serves; `factor` is learnt per deployment from finished jobs (`JobStore.cost_factor`), so a rough file is good enough to
begin with.
"""

import json
import math
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

from service.errors import SettingsError

DEFAULT_FILE = Path(__file__).with_name("cost.json")
# cache -> steps -> threshold from which it holds -> "1" for a computed step
Plans = dict[str, dict[int, dict[float, str]]]


@dataclass(frozen=True)
class CostModel:
    """Coefficients in seconds, and the plans of the caches at the default sampler and flow shift."""

    overhead: float
    per_token: float
    per_token_squared: float
    per_pixel: float
    per_pixel_squared: float = 0.0
    per_latent_frame: float = 0.0
    per_step: float = 0.0
    per_skipped_step: float = 0.0
    per_skipped_token: float = 0.0
    skipped_per_threshold: float = 1.5  # where plans knows nothing of the cache
    plans: Plans = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | None = None) -> "CostModel":
        path = path or DEFAULT_FILE
        try:
            values = json.loads(path.read_text())
            needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
            known = {f.name: values[f.name] for f in fields(cls) if f.name in needed or f.name in values}
            plans = _plans(known.pop("plans", {}))
            return cls(**{name: float(value) for name, value in known.items()}, plans=plans)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            names = ", ".join(f.name for f in fields(cls))
            raise SettingsError(
                f"WAN_COST_FILE is {str(path)!r}: {error!r}; allowed: JSON with {names}, "
                "as python -m wan.cost CHECKPOINT --out FILE writes it"
            ) from None

    def predict(self, request: dict) -> float:
        """Seconds for a complete request (keys width, height, num_frames, steps, guidance_scale; optional
        cache_threshold, cache, guidance_end)."""
        width, height, frames = request["width"], request["height"], request["num_frames"]
        tokens = ((frames - 1) // 4 + 1) * (height // 16) * (width // 16)
        steps, plan = request["steps"], self.plan(request)
        guided = 0 if request["guidance_scale"] == 1 else math.ceil(round(request.get("guidance_end", 1.0) * steps, 6))
        computed, skipped = sum(plan), steps - sum(plan)
        computed_branches = computed + sum(plan[:guided])
        skipped_branches = steps + guided - computed_branches
        denoise = computed * self.per_step + skipped * self.per_skipped_step
        denoise += computed_branches * (self.per_token * tokens + self.per_token_squared * tokens**2)
        denoise += skipped_branches * self.per_skipped_token * tokens
        area = width * height
        decode = self.per_latent_frame * ((frames - 1) // 4 + 1)
        decode += frames * (self.per_pixel * area + self.per_pixel_squared * area**2)
        return self.overhead + denoise + decode

    def plan(self, request: dict) -> list[bool]:
        """Which steps of the request are computed: exact for the numbers of steps in `plans`, else after the nearest one."""
        steps, threshold = request["steps"], request.get("cache_threshold") or 0.0
        known = self.plans.get(request.get("cache", "teacache"))
        if threshold == 0:
            return [True] * steps
        if not known:
            share = 1 - min(0.7, self.skipped_per_threshold * threshold)
            return [round((i + 1) * share) > round(i * share) for i in range(steps)]
        nearest = min(known, key=lambda count: abs(count - steps))
        reached = [start for start in known[nearest] if start <= threshold]
        plan = known[nearest][max(reached)] if reached else "1" * nearest
        return [plan[i * nearest // steps] == "1" for i in range(steps)]


def _plans(written: dict) -> Plans:
    """The plans of a file; raises ValueError for one whose length is not its number of steps."""
    plans = {
        cache: {int(steps): {float(start): plan for start, plan in starts.items()} for steps, starts in counts.items()}
        for cache, counts in written.items()
    }
    for cache, counts in plans.items():
        for steps, starts in counts.items():
            for start, plan in starts.items():
                if len(plan) != steps or set(plan) - {"0", "1"}:
                    raise ValueError(f"plans.{cache}.{steps}.{start:g} is {plan!r}; allowed: {steps} characters 0 or 1")
    return plans
