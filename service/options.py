"""Command line options that `service.run` and `service.serve` share."""

import argparse
import os
from pathlib import Path

from service.stack import ROOT


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "models/tiny", help="what to export if need be")
    parser.add_argument("--repository", type=Path, default=ROOT / "build/repository", help="Triton model repository")
    parser.add_argument("--state", type=Path, default=ROOT / "var", help="jobs, videos and logs")


def use_model_card(checkpoint: Path) -> None:
    """Let gateway and worker take the defaults of the checkpoint that is served."""
    card = checkpoint / "wan.json"
    if card.is_file():
        os.environ.setdefault("WAN_MODEL_CARD", str(card.absolute()))
    os.environ.setdefault("WAN_MODEL_NAME", f"wan-{checkpoint.name}")
