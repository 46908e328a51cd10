"""Names of everything an export writes, as functions of the repository's directory."""

import os
from pathlib import Path

from contract.tensors import ENSEMBLE
from stages.artifacts import MANIFEST

TEMPLATES = Path(__file__).resolve().parent.parent / "model_repository"
MODELS = ("tokenizer", "text_encoder", "denoise", "vae_decoder", ENSEMBLE)
VERSION = "1"


def manifest(repository: Path) -> Path:
    return repository / MANIFEST


def card(repository: Path) -> Path:
    """What the gateway reads of the checkpoint (WAN_MODEL_CARD)."""
    return repository / "card.json"


def version(repository: Path, model: str) -> Path:
    """The directory that holds a model's code and artifacts."""
    return repository / model / VERSION


def tokenizer(repository: Path) -> Path:
    return version(repository, "tokenizer") / "tokenizer"


def dit_checkpoint(repository: Path) -> Path:
    """A checkpoint in the layout of its source that holds the DiT alone."""
    return version(repository, "denoise") / "checkpoint"


def building(repository: Path) -> Path:
    """Where an export works until it is complete."""
    return repository.with_name(f".{repository.name}.building")


def replaced(repository: Path) -> Path:
    """Where the old repository goes for the moment of the exchange."""
    return repository.with_name(f".{repository.name}.replaced")


def graphs(repository: Path) -> Path:
    """ONNX graphs of the GPU target, from which plans are built; kept for the next GPU or TensorRT."""
    return repository.with_name(f"{repository.name}-graphs")


def kept_graphs(repository: Path) -> Path:
    """Graphs for the next repository of the same text encoder or VAE (WAN_GRAPH_CACHE; beside the repository unless told)."""
    return Path(os.environ.get("WAN_GRAPH_CACHE") or repository.with_name(".graphs"))


def lock(repository: Path) -> Path:
    return repository.with_name(f".{repository.name}.lock")
