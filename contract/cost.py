"""What a request costs in seconds of the machine that serves.

    seconds = overhead + sum over the steps of step(branches) + decoding + encoding
    encoding = encoding_share * decoding, with a picture or clip
    decoding = per_latent_frame * T' + T * (per_pixel * H * W + per_pixel_squared * (H * W)^2)
    computed step = per_step + branches * (per_token * (1 + rank_share * R) * S + per_token_squared * S^2)
    skipped step  = per_skipped_step + branches * per_skipped_token * S

Where the branches are computed at the same time (`cfg` is 2), both count for one.

R is the rank of the request's adapters together, S the length of the DiT's sequence, T' the number of latent frames of T
frames; the squares stand for attention; branches is 2 while guidance is on. `python -m wan.cost CHECKPOINT --out FILE` fits
the coefficients to measured steps and writes them with the plans of the caches, so that a request is priced by the steps
that will be computed, without the model.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from contract.errors import InvalidCard
from contract.geometry import Geometry
from contract.parallel import ONE_RANK, Degrees
from contract.parameters import BY_NAME, PARAMETERS, guided_steps, may_skip, steps_of_clip

PRICED = tuple(p.name for p in PARAMETERS if p.priced)
OF_CLIPS = ("sampler", "strength")  # priced with a clip that is changed
Size = tuple[int, int, int]  # width, height, frames
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
    encoding_share: float = 0.6  # the encoder has about so much of the decoder's work; CLIP's is next to nothing
    rank_share: float = 0.0012  # of a token's cost, for each rank: twice the share of the operations at a width of 1536
    skipped_per_threshold: float = 1.5  # where plans knows nothing of the cache
    cfg: int = 1  # guidance branches that are computed at the same time, on several devices
    first_expert: float = 0.5  # share of the steps, where `switches` knows nothing
    switches: dict[int, int] = field(default_factory=dict)  # steps -> those of the first of two experts
    plans: Plans = field(default_factory=dict)

    def step(self, tokens: int, branches: int, computed: bool, rank: int = 0) -> float:
        """Seconds of one step with adapters of so much rank together."""
        branches = -(-branches // self.cfg)
        if not computed:
            return self.per_skipped_step + branches * self.per_skipped_token * tokens
        per_token = self.per_token * (1 + self.rank_share * rank)
        return self.per_step + branches * (per_token * tokens + self.per_token_squared * tokens**2)

    def on(self, degrees: Degrees) -> "CostModel":
        """What was measured on one device, as predicted for several; the fixed part of a step stays."""
        names = ("per_token", "per_token_squared", "per_skipped_token")
        parts: dict[str, Any] = {name: getattr(self, name) * degrees.sequence_share for name in names}
        return replace(self, cfg=degrees.cfg, **parts)

    def decoding(self, width: int, height: int, frames: int, geometry: Geometry) -> float:
        """Seconds of the VAE."""
        area = width * height
        pixels = frames * (self.per_pixel * area + self.per_pixel_squared * area**2)
        return self.per_latent_frame * geometry.latent_frames(frames) + pixels

    def seconds(self, size: Size, steps: Iterable[tuple[bool, int]], geometry: Geometry, rank: int = 0) -> float:
        """Seconds of a request of `size` whose steps are given as (computed, branches)."""
        tokens = geometry.tokens(*size)
        denoising = sum(self.step(tokens, branches, computed, rank) for computed, branches in steps)
        return self.overhead + denoising + self.decoding(*size, geometry)

    def predict(
        self,
        request: Mapping,
        geometry: Geometry,
        media: Collection[str] = (),
        continues: bool = False,
        rank: int = 0,
    ) -> float:
        """Seconds of a complete request, of which only the priced parameters are read, with the `media` it carries.

        `continues`: the model goes on from a clip (`ModelCard.continues`); else it changes it, and runs fewer steps.
        """
        named = [name for name in PRICED if name not in OF_CLIPS]
        # what is None not every variant has, and a request from before it was declared lacks it
        values: list[Any] = [request.get(name) if BY_NAME[name].default is None else request[name] for name in named]
        width, height, frames, steps, scale, second_scale, end, cache, threshold, *skip = values
        first = steps if second_scale is None else self.first_steps(steps)
        if "video" in media and not continues:
            whole, clip = steps, {name: request[name] for name in OF_CLIPS}
            steps = steps_of_clip(whole, **clip)
            first = _first_of_clip(whole, first, steps, **clip)
        guided = [guided_steps(steps, scale if i < first else second_scale, end) for i in range(steps)]
        plan = [
            (computed or not may_skip(i, steps, *skip), 2 if i < guided[i] else 1)
            for i, computed in enumerate(self.plan(steps, cache, threshold))
        ]
        size = width, height, frames
        encoding = self.encoding_share * self.decoding(*size, geometry) if media else 0.0
        return self.seconds(size, plan, geometry, rank) + encoding

    def first_steps(self, steps: int) -> int:
        """How many steps the first of two experts takes, after the nearest number of steps that is known."""
        if not self.switches:
            return round(self.first_expert * steps)
        nearest = min(self.switches, key=lambda count: abs(count - steps))
        return round(self.switches[nearest] * steps / nearest)

    def plan(self, steps: int, cache: str, threshold: float) -> list[bool]:
        """Which steps are computed: exact for the numbers of steps in `plans`, else after the nearest one."""
        known = self.plans.get(cache)
        if threshold == 0:
            return [True] * steps
        if not known:
            share = 1 - min(0.7, self.skipped_per_threshold * threshold)
            return [round((i + 1) * share) > round(i * share) for i in range(steps)]
        nearest = min(known, key=lambda count: abs(count - steps))
        reached = [start for start in known[nearest] if start <= threshold]
        plan = known[nearest][max(reached)] if reached else "1" * nearest
        return [plan[i * nearest // steps] == "1" for i in range(steps)]

    @classmethod
    def load(cls, path: Path, parallel: Degrees = ONE_RANK) -> "CostModel":
        """The model of a file that `write` wrote, on so many devices if it was measured on one; raises InvalidCard."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            model = cls.from_dict(values)
            return model if "parallel" in values.get("engine", {}) else model.on(parallel)
        except (OSError, ValueError) as error:
            raise InvalidCard(
                f"{error!r}; allowed: a file that python -m wan.cost CHECKPOINT --out FILE wrote"
            ) from None

    @classmethod
    def from_dict(cls, values: dict) -> "CostModel":
        """The model of what `asdict` gave; raises InvalidCard."""
        try:
            needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
            known = {f.name: values[f.name] for f in fields(cls) if f.name in needed or f.name in values}
            plans = _plans(known.pop("plans", {}))
            switches = {int(steps): int(first) for steps, first in known.pop("switches", {}).items()}
            known = {name: float(value) for name, value in known.items()}
            return cls(**known | {"cfg": int(known.get("cfg", 1))}, plans=plans, switches=switches)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            names = ", ".join(f.name for f in fields(cls))
            raise InvalidCard(
                f"{error!r}; allowed: JSON with {names}, as python -m wan.cost CHECKPOINT --out FILE writes it"
            ) from None

    def write(self, path: Path, about: dict) -> None:
        """The file that the service reads (WAN_COST_FILE); `about` goes first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(about | asdict(self), indent=1) + "\n", encoding="utf-8")


def _first_of_clip(steps: int, first: int, kept: int, strength: float, sampler: str) -> int:
    """How many of the `kept` steps that are run on a clip the first expert takes, of `first` in the whole schedule."""
    if first == steps:
        return kept
    if sampler == "euler":  # all steps, from a lower level on
        return max(0, round(steps - (steps - first) / strength))
    return max(0, first - (steps - kept))


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
