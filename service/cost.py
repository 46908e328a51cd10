"""Predicted GPU-seconds of a request, the unit in which jobs are admitted, ordered and shared out.

    seconds = factor x (overhead + computed steps + skipped steps + per_pixel x T x H x W)
    computed step = per_step + branches x (per_token x S + per_token_squared x S^2)
    skipped step  = per_skipped_step + branches x per_skipped_token x S

S is the sequence length of the DiT, ((T - 1) / 4 + 1) x (H / 16) x (W / 16); the linear term stands for the matrix products,
the square one for self-attention; branches is 2 while guidance is on. The coefficients, and how many steps a cache computes
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


@dataclass(frozen=True)
class CostModel:
    """Coefficients in seconds. `computed_share`: for each cache, points [threshold, share of the steps computed]."""

    overhead: float
    per_token: float
    per_token_squared: float
    per_pixel: float
    per_step: float = 0.0
    per_skipped_step: float = 0.0
    per_skipped_token: float = 0.0
    skipped_per_threshold: float = 1.5  # where computed_share knows nothing of the cache
    computed_share: dict[str, list[list[float]]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | None = None) -> "CostModel":
        path = path or DEFAULT_FILE
        try:
            values = json.loads(path.read_text())
            needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
            known = {f.name: values[f.name] for f in fields(cls) if f.name in needed or f.name in values}
            shares = known.pop("computed_share", {})
            return cls(**{name: float(value) for name, value in known.items()}, computed_share=shares)
        except (OSError, ValueError, KeyError, TypeError) as error:
            names = ", ".join(f.name for f in fields(cls))
            raise SettingsError(f"WAN_COST_FILE is {str(path)!r}: {error!r}; allowed: JSON with {names}") from None

    def predict(self, request: dict) -> float:
        """Seconds for a complete request (keys width, height, num_frames, steps, guidance_scale; optional
        cache_threshold, cache, guidance_end)."""
        width, height, frames = request["width"], request["height"], request["num_frames"]
        tokens = ((frames - 1) // 4 + 1) * (height // 16) * (width // 16)
        steps, share = request["steps"], self._share(request)
        guided = 0 if request["guidance_scale"] == 1 else math.ceil(request.get("guidance_end", 1.0) * steps)
        branches = 1 + guided / steps  # on average over the steps
        computed = self.per_step + branches * (self.per_token * tokens + self.per_token_squared * tokens**2)
        skipped = self.per_skipped_step + branches * self.per_skipped_token * tokens
        denoise = steps * (share * computed + (1 - share) * skipped)
        return self.overhead + denoise + self.per_pixel * frames * width * height

    def _share(self, request: dict) -> float:
        """Share of the steps that is computed: between the two nearest measured thresholds."""
        threshold = request.get("cache_threshold") or 0.0
        points = sorted(self.computed_share.get(request.get("cache", "teacache"), []))
        if threshold == 0:
            return 1.0
        if not points:
            return 1 - min(0.7, self.skipped_per_threshold * threshold)
        for (low, low_share), (high, high_share) in zip(points, points[1:]):
            if low <= threshold <= high:
                return low_share + (high_share - low_share) * (threshold - low) / (high - low)
        return points[-1][1]
