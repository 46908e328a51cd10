"""The BF16 graphs of the tiny checkpoint; kept between runs, written again when they would differ."""

import hashlib
from pathlib import Path

import pytest

from export import gpu_graphs, manifest
from wan.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parents[2]
GRAPHS = ROOT / "build" / "test-graphs"
CODE = (
    "export/onnx_*.py",
    "export/gpu_graphs.py",
    "export/trt_*",
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
    return GRAPHS, gpu_graphs.export_graphs(opened, GRAPHS, _key(opened), lambda text: None)
