"""The BF16 graphs of the tiny checkpoint; kept between runs, written again when they would differ."""

import hashlib
from pathlib import Path

import pytest

from export import manifest
from export.tensorrt.graphs import export_graphs
from wan.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parents[2]
GRAPHS = ROOT / "build" / "test-graphs"
CODE = (
    "export/onnx/*.py",
    "export/tensorrt/graphs.py",
    "export/tensorrt/support.py",
    "export/tensorrt/operators.json",
    "wan/vae.py",
    "wan/text.py",
    "stages/vae_runtime.py",
)


def _key(checkpoint: Checkpoint) -> str:
    files = sorted(file for pattern in CODE for file in ROOT.glob(pattern))
    code = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return manifest.describe_source(checkpoint)["sha256"] + code


@pytest.fixture(scope="session")
def graphs(checkpoint) -> tuple[Path, dict]:
    """Their folder, and what the export found out about each."""
    opened = Checkpoint.open(checkpoint)
    return GRAPHS, export_graphs(opened, GRAPHS, _key(opened), lambda text: None)
