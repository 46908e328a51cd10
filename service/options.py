"""Command line options that `service.run` and `service.serve` share."""

import argparse
import os
from collections.abc import Collection
from pathlib import Path

from service.stack import ROOT

TINY, TINY_I2V = ROOT / "models/tiny", ROOT / "models/tiny-i2v"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", type=Path, help="what to export if need be; default: the small model of the project"
    )
    parser.add_argument("--target", default="auto", help="of the export: cpu, workstation (a GPU), gpu or auto")
    parser.add_argument(
        "--vram", type=float, help="of the export: GiB that a workstation may use of its GPU; default: all"
    )
    parser.add_argument("--repository", type=Path, help="Triton model repository; default: one under build/")
    parser.add_argument("--state", type=Path, default=ROOT / "var", help="jobs, videos and logs")


def choose(arguments: argparse.Namespace, media: Collection[str] = ()) -> None:
    """Fill in checkpoint and repository: without a checkpoint it is the bundled one that takes `media`, a clip or nothing the
    one that makes videos of text."""
    pictures = set(media) - {"video"}
    arguments.checkpoint = (arguments.checkpoint or (TINY_I2V if pictures else TINY)).resolve()
    # Each has a repository of its own, so that going back to one exports nothing.
    own = "" if arguments.checkpoint == TINY else f"-{arguments.checkpoint.name}"
    arguments.repository = arguments.repository or ROOT / f"build/repository{own}"


def serve_model(checkpoint: Path, repository: Path) -> None:
    """Let gateway and worker know what the repository, which was exported, serves."""
    os.environ.setdefault("WAN_MODEL_CARD", str((repository / "card.json").absolute()))
    os.environ.setdefault("WAN_MODEL_NAME", f"wan-{checkpoint.name}")
