"""What names and shapes of tensors say: architecture of VAE and text encoder, and what is refused of a DiT."""

from torch import nn

from wan.config import VAE21_MEAN, VAE21_STD, VAE22_MEAN, VAE22_STD, TextConfig, VAEConfig
from wan.errors import CheckpointError, UnsupportedCheckpoint
from wan.tensor_files import TensorFiles

# Weights of block-sparse attention, without which such a checkpoint does not compute what it was trained to.
SPARSE = {
    "to_gate_compress": "video sparse attention (VSA, FastVideo)",
    "proj_l.": "sparse-linear attention (SLA, TurboDiffusion)",
}


def refuse_sparse(tensors: TensorFiles) -> None:
    """Raises UnsupportedCheckpoint for a DiT with weights of sparse attention, naming the tensor."""
    for part, what in SPARSE.items():
        if found := next((name for name in sorted(tensors.names) if part in name), None):
            raise UnsupportedCheckpoint(
                f"{tensors.files[0].parent}: tensor {found} belongs to {what}, which is not served"
            )


def check_alike(first: TensorFiles, second: TensorFiles) -> None:
    """Raises CheckpointError for two experts of which one has a tensor that the other lacks or has in another shape."""
    kept = (".weight", ".bias", "modulation", "emb_pos")  # not the scales of FP8 weights
    shapes = [{name: t.shape(name) for name in t.names if name.endswith(kept)} for t in (first, second)]
    for name in sorted({*shapes[0], *shapes[1]}):
        here, there = (list(each.get(name, ())) or "absent" for each in shapes)
        if here != there:
            raise CheckpointError(
                f"{first.files[0].parent} and {second.files[0].parent} are not experts of one model: tensor {name} is "
                f"{here} in the first and {there} in the second"
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
