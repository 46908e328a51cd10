"""Does a video begin with the given picture and go where its prompt says? `python -m tiny.obedience_i2v`.

The objects stand in the middle of their pictures, so that no picture gives the direction away, and none of the combinations
was trained on. With `--last` the last frame is given too, and the video has to end there.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from contract import arguments
from tiny.obedience import BORDER, Verdict, centroid, check, held_out_prompts, silhouette
from tiny.scenes import HELD_OUT, Scene, render
from wan.pipeline import to_uint8

MIN_PSNR = 25  # dB; the VAE alone keeps 30 to 37, a clip's first and last frame have 12 to 20 between them
MAX_OFFSET = 2.0  # pixels between an object and where it should be


@dataclass(frozen=True)
class Likeness:
    """How near a frame is to the one it should be: PSNR in dB, and the distance of the objects in pixels (inf: there is none)."""

    psnr: float
    offset: float

    @property
    def enough(self) -> bool:
        return self.psnr >= MIN_PSNR and self.offset <= MAX_OFFSET

    def __str__(self) -> str:
        return f"{self.psnr:.1f} dB, {self.offset:.1f} px off"


@dataclass(frozen=True)
class PictureVerdict:
    """What the clip shows beside its prompt, and how near its ends are to the given pictures (None where none was given)."""

    motion: Verdict
    first: Likeness
    last: Likeness | None = None

    @property
    def obeys(self) -> bool:
        return self.motion.obeys and self.first.enough and (self.last is None or self.last.enough)

    def __str__(self) -> str:
        ends = f"begins {self.first}" + (f", ends {self.last}" if self.last else "")
        return f"{'ok   ' if self.obeys else 'wrong'} {self.motion}; {ends}"


def place(frame: np.ndarray) -> np.ndarray | None:
    """Where the object of a frame uint8 [H, W, 3] is, in pixels; None where there is none."""
    pixels = frame.astype(np.float64) / 255
    ring = np.ones(pixels.shape[:2], dtype=bool)
    ring[BORDER:-BORDER, BORDER:-BORDER] = False
    found = silhouette(pixels, np.median(pixels[ring], axis=0))
    return None if found is None else centroid(found[0])


def likeness(frame: np.ndarray, given: np.ndarray) -> Likeness:
    """Of two frames uint8 [H, W, 3] of one size."""
    error = np.mean((frame.astype(np.float64) - given) ** 2)
    shown, wanted = place(frame), place(given)
    offset = np.inf if shown is None or wanted is None else np.linalg.norm(shown - wanted)
    return Likeness(float(10 * np.log10(255**2 / max(error, 1e-10))), float(offset))


def clip_of(scene: Scene, seed: int) -> np.ndarray:
    """A clip uint8 [T, H, W, 3] of a scene that begins in the middle."""
    return to_uint8(render([scene], torch.Generator().manual_seed(seed), from_middle=True)[0]).numpy()


Generate = Callable[[str, int, dict], np.ndarray]  # prompt, seed, pictures -> frames uint8 [T, H, W, 3]


def evaluate(generate: Generate, count: int = 20, seed: int = 0, last: bool = False) -> list[PictureVerdict]:
    """Verdicts on `count` held-out prompts in both languages, each with the first frame of such a clip and maybe its last."""
    verdicts = []
    for i, (scene, prompt) in enumerate(held_out_prompts(count, seed)):
        clip = clip_of(scene, seed + i)
        pictures = {"image": clip[0]} | ({"last_image": clip[-1]} if last else {})
        frames = generate(prompt, i, pictures)
        ends = likeness(frames[-1], clip[-1]) if last else None
        verdicts.append(PictureVerdict(check(frames, scene), likeness(frames[0], clip[0]), ends))
    return verdicts


def main() -> None:
    from wan import Pipeline

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="models/tiny-i2v")
    parser.add_argument("--count", type=int, default=len(HELD_OUT))
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--last", action="store_true", help="give the last frame too")
    arguments.add(parser, without=("prompt", "seed", "fps"))
    args = parser.parse_args()
    pipeline = Pipeline.from_checkpoint(args.checkpoint)

    def generate(prompt: str, seed: int, pictures: dict) -> np.ndarray:
        return pipeline(prompt, seed=seed, **pictures, **arguments.given(args)).frames

    verdicts = evaluate(generate, args.count, args.first_seed, args.last)
    print(*verdicts, sep="\n")
    print(f"{sum(v.obeys for v in verdicts)} of {len(verdicts)} obey")


if __name__ == "__main__":
    main()
