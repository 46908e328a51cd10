"""Independent implementations (diffusers) of small random sizes, and comparison on the scale of the answer."""

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor

from wan.config import DiTConfig, VAEConfig
from wan.dit import WanDiT
from wan.keys import dit_from_diffusers, vae_from_diffusers
from wan.vae import WanVAE


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest value of the reference."""
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def dit_pair(heads: int, head_dim: int, layers: int, ffn_dim: int, text_dim: int, seed: int, in_channels: int = 16):
    """A diffusers DiT with random weights and ours with the same."""
    torch.manual_seed(seed)
    reference = WanTransformer3DModel(
        num_attention_heads=heads, attention_head_dim=head_dim, num_layers=layers, ffn_dim=ffn_dim, text_dim=text_dim,
        freq_dim=256, in_channels=in_channels, out_channels=16, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
    ).eval()  # fmt: skip
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    config = DiTConfig(
        dim=heads * head_dim, num_layers=layers, num_heads=heads, ffn_dim=ffn_dim, text_dim=text_dim,
        in_channels=in_channels,
    )  # fmt: skip
    ours = WanDiT(config).eval()
    ours.load_state_dict({dit_from_diffusers(k): v for k, v in reference.state_dict().items()})
    return reference, ours


def vae_pair(dim: int, num_res_blocks: int, seed: int):
    """A diffusers VAE with random weights and ours with the same; latents there are not normalised."""
    torch.manual_seed(seed)
    reference = AutoencoderKLWan(base_dim=dim, z_dim=16, num_res_blocks=num_res_blocks).eval()
    ours = WanVAE(VAEConfig(dim=dim, num_res_blocks=num_res_blocks)).eval()
    rename = vae_from_diffusers(num_res_blocks)
    ours.load_state_dict({rename(k): v for k, v in reference.state_dict().items()})
    return reference, ours
