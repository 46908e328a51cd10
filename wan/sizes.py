"""Architecture of the networks, from the names and shapes of their tensors."""

from math import prod

from torch import nn

from wan.config import VAE21_MEAN, VAE21_STD, VAE22_MEAN, VAE22_STD, DiTConfig, TextConfig, VAEConfig
from wan.errors import UnsupportedCheckpoint
from wan.tensor_files import TensorFiles


def out_channels(tensors: TensorFiles) -> int:
    """Of a DiT: those of the latents."""
    return tensors.shape("head.head.weight")[0] // prod(tensors.shape("patch_embedding.weight")[2:])


def dit_config(tensors: TensorFiles, num_heads: int | None = None) -> DiTConfig:
    """Architecture of a DiT from its tensors."""
    dim, channels = tensors.shape("patch_embedding.weight")[:2]
    return DiTConfig(
        dim=dim,
        num_layers=tensors.count(r"blocks\.(\d+)\."),
        num_heads=num_heads or dim // 128,
        ffn_dim=tensors.shape("blocks.0.ffn.0.weight")[0],
        in_channels=channels,
        out_channels=out_channels(tensors),
        text_dim=tensors.shape("text_embedding.0.weight")[1],
        freq_dim=tensors.shape("time_embedding.0.weight")[1],
        image_dim=tensors.shape("img_emb.proj.0.weight")[0] if "img_emb.proj.0.weight" in tensors else 0,
        image_positions=tensors.shape("img_emb.emb_pos")[1] if "img_emb.emb_pos" in tensors else 0,
    )


def vae_config(tensors: TensorFiles, latents_mean=None, latents_std=None) -> VAEConfig:
    """Without statistics those of the generation, 2.1 or 2.2, that the tensors are of."""
    dim, channels = tensors.shape("encoder.conv1.weight")[:2]
    if channels not in (3, 12):
        raise UnsupportedCheckpoint(
            f"{tensors.files[0]}: a VAE of {channels} input channels; Wan 2.1 has 3 and Wan 2.2 has 12"
        )
    wan22 = channels == 12
    mean, std = (VAE22_MEAN, VAE22_STD) if wan22 else (VAE21_MEAN, VAE21_STD)
    if wan22:
        blocks = tensors.count(r"encoder\.downsamples\.0\.downsamples\.(\d+)\.residual\.")
    else:  # 4 levels of n + 1 blocks, 3 upsamplers
        blocks = (tensors.count(r"decoder\.upsamples\.(\d+)\.") - 3) // 4 - 1
    return VAEConfig(
        dim=dim,
        z_dim=tensors.shape("conv2.weight")[0],
        num_res_blocks=blocks,
        latents_mean=tuple(latents_mean or mean),
        latents_std=tuple(latents_std or std),
        decoder_dim=tensors.shape("decoder.conv1.weight")[0] // VAEConfig.dim_mult[-1],
        patch=2 if wan22 else 1,
    )


def text_config(tensors: TensorFiles) -> TextConfig:
    vocab_size, d_model = tensors.shape("shared.weight")
    first = "encoder.block.0.layer."
    buckets, heads = tensors.shape(first + "0.SelfAttention.relative_attention_bias.weight")
    return TextConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=tensors.shape(first + "0.SelfAttention.q.weight")[0] // heads,
        d_ff=tensors.shape(first + "1.DenseReluDense.wi_0.weight")[0],
        num_layers=tensors.count(r"encoder\.block\.(\d+)\."),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
    )


def build_umt5(config: TextConfig) -> nn.Module:
    """The transformers module for `config`."""
    from transformers import UMT5Config, UMT5EncoderModel

    settings = UMT5Config(**vars(config), feed_forward_proj="gated-gelu", dropout_rate=0.0, tie_word_embeddings=False)
    return UMT5EncoderModel(settings)
