"""Does what moves paint a trail, and obey its prompt all the same? `python -m tiny.obedience_trail`.

The trail hides the shape, so that the first frame where something is seen has to show it; everything else is judged as without one.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from contract import arguments
from tiny.lora import bundled
from tiny.obedience import BORDER, Verdict, check, held_out_prompts, silhouette
from tiny.scenes import HELD_OUT, Scene

SOON = 4  # frames, by which the object has to be seen
MIN_GROWTH = 1.6  # drawn trails are 2.2 to 4 times as large as the object alone


@dataclass(frozen=True)
class TrailVerdict:
    """What the clip shows, and how many times more of the picture has its colour at the end than in the beginning."""

    motion: Verdict
    growth: float

    @property
    def paints(self) -> bool:
        return self.growth >= MIN_GROWTH

    def __str__(self) -> str:
        return f"{self.motion}; {self.growth:.1f} times as large at the end"


def area(frame: np.ndarray) -> float:
    """Share of a frame uint8 [H, W, 3] that stands out from its background."""
    pixels = frame.astype(np.float64) / 255
    ring = np.ones(pixels.shape[:2], dtype=bool)
    ring[BORDER:-BORDER, BORDER:-BORDER] = False
    found = silhouette(pixels, np.median(pixels[ring], axis=0))
    return 0.0 if found is None else float(found[0].mean())


def check_trail(frames: np.ndarray, asked: Scene) -> TrailVerdict:
    """Judge frames uint8 [T, H, W, 3] against the scene that they were asked to show."""
    begin = next((i for i, frame in enumerate(frames[:SOON]) if area(frame)), 0)
    motion = replace(check(frames, asked), shape=check(frames[begin : begin + 1], asked).shape)
    return TrailVerdict(motion, area(frames[-1]) / (area(frames[begin]) or np.inf))


def evaluate(generate: Callable[[str, int], np.ndarray], count: int = 20, seed: int = 0) -> list[TrailVerdict]:
    """Verdicts on `count` held-out prompts; `generate(prompt, seed)` returns frames uint8 [T, H, W, 3]."""
    return [check_trail(generate(prompt, i), scene) for i, (scene, prompt) in enumerate(held_out_prompts(count, seed))]


def main() -> None:
    from wan import Pipeline

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="models/tiny")
    parser.add_argument("--count", type=int, default=len(HELD_OUT))
    parser.add_argument("--first-seed", type=int, default=0)
    arguments.add(parser, without=("prompt", "seed", "fps"))
    args = parser.parse_args()
    pipeline = Pipeline.from_checkpoint(args.checkpoint)
    given = {"lora": "trail"} | arguments.given(args)
    adapters = bundled(pipeline.card, given["lora"])

    def generate(prompt: str, seed: int) -> np.ndarray:
        return pipeline(prompt, seed=seed, adapters=adapters, **given).frames

    verdicts = evaluate(generate, args.count, args.first_seed)
    print(*verdicts, sep="\n")
    both = sum(v.motion.obeys and v.paints for v in verdicts)
    print(f"{sum(v.paints for v in verdicts)} of {len(verdicts)} paint, {both} of {len(verdicts)} paint and obey")


if __name__ == "__main__":
    main()
