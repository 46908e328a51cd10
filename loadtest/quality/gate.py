"""Floors per set of options: below one, the gate is closed."""

import json
from pathlib import Path

from loadtest.base.inputs import LoadTestError
from loadtest.quality.evaluate import Row

FLOORS_FILE = Path(__file__).with_name("floors.json")
KEYS = ("psnr", "ssim", "vmaf", "ms_ssim", "xpsnr", "obedience", "steps_ratio")


def load_floors(path: Path = FLOORS_FILE) -> dict[str, dict[str, float]]:
    """Floors by set of options. Raises LoadTestError for a file or key that is not understood."""
    try:
        content = {name: floors for name, floors in json.loads(path.read_text()).items() if not name.startswith("_")}
    except (OSError, ValueError) as error:
        raise LoadTestError(f"{path} is not a readable file of floors: {error}") from error
    for name, floors in content.items():
        if unknown := set(floors) - set(KEYS):
            raise LoadTestError(f"{path}: {name} has unknown floors {sorted(unknown)}; allowed: {', '.join(KEYS)}")
    return content


def figures(row: Row) -> dict[str, float | None]:
    """The figures that have floors; obedience is a share, steps_ratio how many times fewer steps were computed."""
    return {
        **{name: getattr(row, name) for name in ("psnr", "ssim", "vmaf", "ms_ssim", "xpsnr")},
        "obedience": row.obeyed / row.checked if row.checked else 1.0,
        "steps_ratio": (row.steps_computed + row.steps_skipped) / row.steps_computed,
    }


def failures(rows: list[Row], floors: dict[str, dict[str, float]]) -> list[str]:
    """One sentence for each figure that is below its floor; one that was not measured has no verdict, see `perceptual`."""
    return [
        f"{row.name}: {key} is {value:.3f}, its floor is {floor:g}"
        for row in rows
        for key, floor in floors.get(row.name, {}).items()
        if (value := figures(row)[key]) is not None and value < floor
    ]
