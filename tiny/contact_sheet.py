"""Draws held-out prompts and lays out five frames of each in a row. `python -m tiny.contact_sheet`."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from tiny.obedience import held_out_prompts
from wan import Pipeline

COLUMNS = 5
GAP = 4  # pixels
ZOOM = 2


def row(frames: np.ndarray) -> np.ndarray:
    """Five frames, evenly spread in time, side by side."""
    index = np.linspace(0, len(frames) - 1, COLUMNS).round().astype(int)
    gap = np.full((frames.shape[1], GAP, 3), 255, np.uint8)
    return np.concatenate([part for i in index for part in (frames[i], gap)][:-1], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="models/tiny")
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("docs/contact-sheet.png"))
    args = parser.parse_args()
    pipeline = Pipeline.from_checkpoint(args.checkpoint)
    rows = []
    for seed, (_, prompt) in enumerate(held_out_prompts(args.rows)):
        print(prompt)
        rows.append(row(pipeline(prompt, seed=seed).frames))
    gap = np.full((GAP, rows[0].shape[1], 3), 255, np.uint8)
    sheet = Image.fromarray(np.concatenate([part for r in rows for part in (r, gap)][:-1]))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.resize((sheet.width * ZOOM, sheet.height * ZOOM), Image.Resampling.NEAREST).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
