"""Packages the DiT: its safetensors files as they are, with the JSON that describes them."""

import shutil
from pathlib import Path

from wan.checkpoint import SETTINGS_FILE, Checkpoint


def dit_files(checkpoint: Checkpoint) -> list[Path]:
    """Weights, index and configuration of the DiT, and the checkpoint's own settings."""
    weights = checkpoint.dit_tensors().files
    beside = sorted(weights[0].parent.glob("*.json"))
    settings = checkpoint.root / SETTINGS_FILE
    return list(dict.fromkeys([*weights, *beside, *([settings] if settings.is_file() else [])]))


def package_dit(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy, never link: a training run that overwrites its checkpoint must not change a server's weights."""
    for source in dit_files(checkpoint):
        target = folder / source.relative_to(checkpoint.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
