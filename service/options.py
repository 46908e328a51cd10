"""Command line options that `service.run` and `service.serve` share."""

import argparse
import os
from pathlib import Path

from service.stack import ROOT


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "models/tiny", help="what to export if need be")
    parser.add_argument("--target", default="auto", help="of the export: cpu, workstation (a GPU), gpu or auto")
    parser.add_argument("--repository", type=Path, default=ROOT / "build/repository", help="Triton model repository")
    parser.add_argument("--state", type=Path, default=ROOT / "var", help="jobs, videos and logs")


def serve_model(checkpoint: Path, repository: Path) -> None:
    """Let gateway and worker know what the repository, which was exported, serves."""
    os.environ.setdefault("WAN_MODEL_CARD", str((repository / "card.json").absolute()))
    os.environ.setdefault("WAN_MODEL_NAME", f"wan-{checkpoint.name}")
