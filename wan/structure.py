"""Architecture of the VAE and of the text encoder, from names and shapes of their tensors."""

from torch import nn

from wan.config import VAE21_MEAN, VAE21_STD, TextConfig, VAEConfig
from wan.errors import UnsupportedCheckpoint
from wan.tensor_files import TensorFiles


def vae_config(tensors: TensorFiles, latents_mean=VAE21_MEAN, latents_std=VAE21_STD) -> VAEConfig:
    dim, channels = tensors.shape("encoder.conv1.weight")[:2]
    if channels != 3:
        raise UnsupportedCheckpoint(
            f"{tensors.files[0]}: this is the Wan 2.2 VAE ({channels} input channels); only 2.1 is served"
        )
    blocks = (tensors.count(r"decoder\.upsamples\.(\d+)\.") - 3) // 4 - 1  # 4 levels of n + 1 blocks, 3 upsamplers
    return VAEConfig(
        dim=dim,
        z_dim=tensors.shape("conv2.weight")[0],
        num_res_blocks=blocks,
        latents_mean=tuple(latents_mean),
        latents_std=tuple(latents_std),
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
