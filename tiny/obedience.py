"""Does a video show what its prompt says? A pixel-level check for the scenes of `tiny.scenes`.

Needs no network: the object is what differs from the background; its colour is the nearest of the palette, its
direction that of its centroid, its shape the template that overlaps its silhouette best.
"""

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from contract import arguments
from tiny import wordings
from tiny.scenes import BACKGROUNDS, CHINESE, COLORS, DIRECTIONS, ENGLISH, HELD_OUT, SHAPES, Scene, coverage

MIN_TRAVEL = 0.12  # of the frame's smaller side, from first to last frame
BORDER = 4  # pixels; the ring in which the background is read
MIN_AREA = 0.01  # of the frame; less is no object


@dataclass(frozen=True)
class Verdict:
    """What the check saw (None where there is no object) beside what was asked for."""

    asked: Scene
    shape: str | None
    color: str | None
    direction: str | None
    background: str | None

    @property
    def wrong(self) -> list[str]:
        names = ("shape", "color", "direction", "background")
        return [name for name in names if getattr(self, name) != getattr(self.asked, name)]

    @property
    def obeys(self) -> bool:
        return not self.wrong

    def __str__(self) -> str:
        asked = self.asked.english()
        return (
            f"ok    {asked}"
            if self.obeys
            else f"wrong {asked}: " + ", ".join(f"{n} is {getattr(self, n)}" for n in self.wrong)
        )


def _nearest(palette: dict[str, tuple[str, tuple]], rgb: np.ndarray) -> str:
    return min(palette, key=lambda name: float(np.sum((np.array(palette[name][1]) - rgb) ** 2)))


def silhouette(frame: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Soft mask [H, W] in 0..1 of the object and its colour, or None if nothing stands out."""
    distance = np.linalg.norm(frame - background, axis=-1)
    peak = np.quantile(distance, 0.985)
    if peak < 0.12:
        return None
    color = np.median(frame[distance > 0.75 * peak], axis=0)
    axis = color - background
    mask = np.clip((frame - background) @ axis / (axis @ axis), 0, 1)
    mask[mask < 0.25] = 0
    return (mask, color) if mask.mean() >= MIN_AREA else None


def centroid(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    return np.array([(columns * mask).sum(), (rows * mask).sum()]) / mask.sum()


def _overlap(mask: np.ndarray, shape: str) -> float:
    """Intersection over union of the mask and the template `shape` of equal area at the same centroid."""
    size = max(mask.shape)
    padded = np.zeros((size, size))
    padded[: mask.shape[0], : mask.shape[1]] = mask
    center, radius = centroid(mask), np.sqrt(mask.sum() / np.pi)
    shift = np.zeros(2)
    for _ in range(3):  # the template's own centroid and area are known only once it is drawn
        x, y, r = torch.tensor([*(center + shift), radius], dtype=torch.float32)
        template = coverage(shape, x, y, r, size=size).numpy()
        if template.sum() == 0:
            return 0.0
        shift += center - centroid(template)
        radius *= np.sqrt(mask.sum() / template.sum())
    return float(np.minimum(padded, template).sum() / np.maximum(padded, template).sum())


def check(frames: np.ndarray, asked: Scene) -> Verdict:
    """Judge frames uint8 [T, H, W, 3] against the scene they were asked to show."""
    video = frames.astype(np.float64) / 255
    ring = np.ones(video.shape[1:3], dtype=bool)
    ring[BORDER:-BORDER, BORDER:-BORDER] = False
    background = np.median(video[:, ring].reshape(-1, 3), axis=0)
    seen = [s for s in (silhouette(frame, background) for frame in video) if s is not None]
    if len(seen) < 0.8 * len(video):
        return Verdict(asked, None, None, None, _nearest(BACKGROUNDS, background))
    masks = [mask for mask, _ in seen]
    color = np.median([c for _, c in seen], axis=0)
    dx, dy = centroid(masks[-1]) - centroid(masks[0])
    direction = None
    if max(abs(dx), abs(dy)) >= MIN_TRAVEL * min(video.shape[1:3]):
        step = (int(np.sign(dx)), 0) if abs(dx) > abs(dy) else (0, int(np.sign(dy)))
        direction = next(name for name, (_, d) in DIRECTIONS.items() if d == step)
    sampled = masks[:: max(1, len(masks) // 5)]
    scores = {shape: float(np.mean([_overlap(mask, shape) for mask in sampled])) for shape in SHAPES}
    return Verdict(
        asked,
        max(scores, key=scores.__getitem__),
        _nearest(COLORS, color),
        direction,
        _nearest(BACKGROUNDS, background),
    )


def held_out_prompts(count: int, seed: int = 0) -> list[tuple[Scene, str]]:
    """Scenes that were never trained on, alternating between English and Chinese prompts."""
    rng = random.Random(seed)
    scenes = rng.sample(HELD_OUT, count) if count <= len(HELD_OUT) else rng.choices(HELD_OUT, k=count)
    return [
        (s, s.chinese(rng.choice(CHINESE)) if i % 2 else s.english(rng.choice(ENGLISH))) for i, s in enumerate(scenes)
    ]


def reworded_prompts(count: int, seed: int = 0) -> list[tuple[Scene, str]]:
    """The same scenes in other words than the templates', every fourth one in capitals."""
    rng = random.Random(seed)
    prompts = []
    for i, (scene, _) in enumerate(held_out_prompts(count, seed)):
        text = (wordings.chinese if i % 2 else wordings.english)(scene, rng)
        prompts.append((scene, text.upper() if i % 4 == 0 else text))
    return prompts


def evaluate(
    generate: Callable[[str, int], np.ndarray], count: int = 20, seed: int = 0, prompts=held_out_prompts
) -> list[Verdict]:
    """Verdicts on `count` held-out prompts; `generate(prompt, seed)` returns frames uint8 [T, H, W, 3]."""
    return [check(generate(prompt, i), scene) for i, (scene, prompt) in enumerate(prompts(count, seed))]


def main() -> None:
    from tiny.lora import bundled
    from wan import Pipeline

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="models/tiny")
    parser.add_argument("--count", type=int, default=len(HELD_OUT))
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--reworded", action="store_true", help="in other words than the templates', capitals too")
    arguments.add(parser, without=("prompt", "seed", "fps"))
    args = parser.parse_args()
    pipeline = Pipeline.from_checkpoint(args.checkpoint)

    adapters = bundled(pipeline.card, args.lora)

    def generate(prompt: str, seed: int) -> np.ndarray:
        return pipeline(prompt, seed=seed, adapters=adapters, **arguments.given(args)).frames

    prompts = reworded_prompts if args.reworded else held_out_prompts
    verdicts = evaluate(generate, args.count, args.first_seed, prompts)
    print(*verdicts, sep="\n")
    print(f"{sum(v.obeys for v in verdicts)} of {len(verdicts)} obey")


if __name__ == "__main__":
    main()
