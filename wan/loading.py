"""One network of the checkpoint at a path, in either layout."""

from pathlib import Path

import torch

from wan.checkpoint import Checkpoint
from wan.dit import WanDiT
from wan.text import TextEncoder, Tokenizer
from wan.vae import WanVAE


def load_dit(path: str | Path, device=None, dtype: torch.dtype | None = None) -> WanDiT:
    """Load the DiT of the checkpoint at `path`; float32 on the CPU unless told otherwise."""
    return Checkpoint.open(path).load_dit(device, dtype)


def load_vae(path: str | Path, device=None, dtype: torch.dtype | None = None) -> WanVAE:
    """Load the VAE of the checkpoint at `path`."""
    return Checkpoint.open(path).load_vae(device, dtype)


def load_text_encoder(path: str | Path, device=None, dtype: torch.dtype | None = None) -> TextEncoder:
    """Load the text encoder of the checkpoint at `path`."""
    return Checkpoint.open(path).load_text_encoder(device, dtype)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load the tokenizer of the checkpoint at `path`."""
    return Tokenizer(Checkpoint.open(path).tokenizer_directory)
