"""The Wan video models: networks, samplers, caching and checkpoint reading. Knows nothing of serving."""

from contract.parameters import GenerationRequest
from wan.checkpoint import Checkpoint
from wan.dit import WanDiT
from wan.errors import Cancelled, CheckpointError, InvalidRequest, UnsupportedCheckpoint, WanError
from wan.loading import load_dit, load_text_encoder, load_tokenizer, load_vae
from wan.pipeline import Pipeline, Video
from wan.vae import WanVAE

__all__ = [
    "Cancelled", "Checkpoint", "CheckpointError", "GenerationRequest", "InvalidRequest", "Pipeline", "UnsupportedCheckpoint",
    "Video", "WanDiT", "WanError", "WanVAE", "load_dit", "load_text_encoder", "load_tokenizer", "load_vae",
]  # fmt: skip
