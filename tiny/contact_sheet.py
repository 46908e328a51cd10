"""Draws held-out prompts and lays out five frames of each in a row. `python -m tiny.contact_sheet`.

Of a model that begins with a picture, the given one comes first in its row.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from contract import arguments
from tiny.lora import bundled
from tiny.obedience import held_out_prompts
from tiny.obedience_i2v import clip_of
from wan import Pipeline

COLUMNS = 5
GAP = 4  # pixels
ZOOM = 2


def row(frames: np.ndarray, given: list[np.ndarray]) -> np.ndarray:
    """The given pictures, then five frames, evenly spread in time, side by side."""
    index = np.linspace(0, len(frames) - 1, COLUMNS).round().astype(int)
    gap = np.full((frames.shape[1], GAP, 3), 255, np.uint8)
    parts = [
        *(each for picture in given for each in (picture, gap, gap)),
        *(x for i in index for x in (frames[i], gap)),
    ]
    return np.concatenate(parts[:-1], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="models/tiny")
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("docs/contact-sheet.png"))
    arguments.add(parser, without=("prompt", "seed", "fps"))
    args = parser.parse_args()
    pipeline = Pipeline.from_checkpoint(args.checkpoint)
    adapters, parameters = bundled(pipeline.card, args.lora), arguments.given(args)
    rows = []
    for seed, (scene, prompt) in enumerate(held_out_prompts(args.rows)):
        print(prompt)
        given = {name: clip_of(scene, seed)[0] for name in pipeline.card.needs}
        video = pipeline(prompt, seed=seed, adapters=adapters, **given, **parameters)
        rows.append(row(video.frames, list(given.values())))
    gap = np.full((GAP, rows[0].shape[1], 3), 255, np.uint8)
    sheet = Image.fromarray(np.concatenate([part for r in rows for part in (r, gap)][:-1]))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.resize((sheet.width * ZOOM, sheet.height * ZOOM), Image.Resampling.NEAREST).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
