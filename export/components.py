"""Whether the networks of a checkpoint belong together, and the numbers that configurations need of them."""

from wan.checkpoint import Checkpoint
from wan.config import DiTConfig, TextConfig, VAEConfig
from wan.errors import CheckpointError
from wan.text import TEXT_LENGTH


def check_components(checkpoint: Checkpoint) -> tuple[DiTConfig, VAEConfig, TextConfig]:
    """The configurations of the three networks; raises CheckpointError if one does not fit the others."""
    dit, vae, text = checkpoint.dit_config(), checkpoint.vae_config(), checkpoint.text_config()
    if text.d_model != dit.text_dim:
        raise CheckpointError(f"{checkpoint.root}: text encoder width {text.d_model}, the DiT expects {dit.text_dim}")
    if vae.z_dim != dit.out_channels:
        raise CheckpointError(f"{checkpoint.root}: the VAE has {vae.z_dim} latent channels, the DiT {dit.out_channels}")
    return dit, vae, text


def model_values(dit: DiTConfig, vae: VAEConfig, text: TextConfig) -> dict[str, int]:
    """What the placeholders of the configuration templates stand for."""
    return {"text_len": TEXT_LENGTH, "text_dim": text.d_model, "z_dim": vae.z_dim}
