"""What is asked for: MLPerf's text-to-video workload, and a small one that `models/tiny` can draw."""

from itertools import product
from pathlib import Path
from typing import Any

from contract.parameters import NEGATIVE_PROMPT
from loadtest.base.inputs import ProfileError

# mlcommons/inference, text_to_video/wan2.2-t2v-14b: one seed for all prompts stands for its fixed start latent.
MLPERF: dict[str, Any] = {
    "width": 1280, "height": 720, "num_frames": 81, "steps": 20, "guidance_scale": 4.0, "seed": 42,
    "negative_prompt": NEGATIVE_PROMPT,
}  # fmt: skip
TINY: dict[str, Any] = {"width": 64, "height": 64, "num_frames": 17, "steps": 20, "guidance_scale": 3.0, "seed": 42}
WORKLOADS = {"mlperf": MLPERF, "tiny": TINY}
COLOURS, FORMS = ("red", "green", "blue", "yellow"), ("circle", "square", "triangle", "cross")
OWN = tuple(f"a {colour} {form} moves right on a gray background" for colour, form in product(COLOURS, FORMS))


def requests(name: str, prompts: Path | None) -> list[dict]:
    """One request a prompt; without a file the project's own prompts, which are not those of MLPerf."""
    lines = OWN if prompts is None else _lines(prompts)
    return [WORKLOADS[name] | {"prompt": prompt} for prompt in lines]


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"--prompts is {str(path)!r}: {error}; allowed: a text file, one prompt a line") from error
    if not lines:
        raise ProfileError(f"--prompts is {str(path)!r}, which is empty; allowed: one prompt a line")
    return lines
