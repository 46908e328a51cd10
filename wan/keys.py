"""Names of tensors: Diffusers layout to the official Wan layout, which our modules use.

The layouts hold the same tensors under different names; nothing is transposed or merged.
"""

import re
from collections.abc import Callable

from contract.dit_names import dit_from_diffusers, rename_first

__all__ = ["dit_from_diffusers", "dit_to_diffusers", "umt5_from_official", "vae_from_diffusers", "vae_to_diffusers"]

_VAE_RESNET = [
    (r"\.norm1\.", ".residual.0."),
    (r"\.conv1\.", ".residual.2."),
    (r"\.norm2\.", ".residual.3."),
    (r"\.conv2\.", ".residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
]


def vae_from_diffusers(num_res_blocks: int, residual: bool = False) -> Callable[[str], str]:
    """Renaming for a VAE with `num_res_blocks` residual blocks per encoder level (the decoder has one more).

    `residual`: the VAE of Wan 2.2, where levels are modules of their own.
    """
    per_level = num_res_blocks + 2  # residual blocks of a decoder level and its upsampler

    def rename(key: str) -> str:
        key = re.sub(r"^quant_conv\.", "conv1.", key)
        key = re.sub(r"^post_quant_conv\.", "conv2.", key)
        key = re.sub(r"^(encoder|decoder)\.conv_in\.", r"\1.conv1.", key)
        key = re.sub(r"^(encoder|decoder)\.norm_out\.", r"\1.head.0.", key)
        key = re.sub(r"^(encoder|decoder)\.conv_out\.", r"\1.head.2.", key)
        key = re.sub(r"\.mid_block\.resnets\.(\d)", lambda m: f".middle.{2 * int(m[1])}", key)
        key = re.sub(r"\.mid_block\.attentions\.0", ".middle.1", key)
        if residual:
            key = _stages_from_diffusers(key, num_res_blocks)
        key = re.sub(r"^encoder\.down_blocks\.", "encoder.downsamples.", key)
        key = re.sub(
            r"^decoder\.up_blocks\.(\d+)\.resnets\.(\d+)",
            lambda m: f"decoder.upsamples.{int(m[1]) * per_level + int(m[2])}",
            key,
        )
        key = re.sub(
            r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0",
            lambda m: f"decoder.upsamples.{int(m[1]) * per_level + num_res_blocks + 1}",
            key,
        )
        if re.match(r"(encoder|decoder)\.(middle|downsamples|upsamples)\.", key) and "to_qkv" not in key:
            for pattern, replacement in _VAE_RESNET:
                key = re.sub(pattern, replacement, key)
        return key

    return rename


def _stages_from_diffusers(key: str, num_res_blocks: int) -> str:
    key = re.sub(r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.downsamples.\1.downsamples.", key)
    key = re.sub(
        r"^encoder\.down_blocks\.(\d+)\.downsampler\.", rf"encoder.downsamples.\1.downsamples.{num_res_blocks}.", key
    )
    key = re.sub(r"^decoder\.up_blocks\.(\d+)\.resnets\.", r"decoder.upsamples.\1.upsamples.", key)
    return re.sub(
        r"^decoder\.up_blocks\.(\d+)\.upsampler\.", rf"decoder.upsamples.\1.upsamples.{num_res_blocks + 1}.", key
    )


_UMT5_RULES = [
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.block.\1.layer.0.SelfAttention."),
    (r"^blocks\.(\d+)\.pos_embedding\.embedding\.", r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias."),
    (r"^blocks\.(\d+)\.ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
]


def umt5_from_official(key: str) -> str:
    """Official umT5 name to that of transformers' UMT5EncoderModel (the one network whose module is not ours)."""
    return rename_first(_UMT5_RULES, key)


_TO_DIT = [
    (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^img_emb\.proj\.0\.", "condition_embedder.image_embedder.norm1."),
    (r"^img_emb\.proj\.1\.", "condition_embedder.image_embedder.ff.net.0.proj."),
    (r"^img_emb\.proj\.3\.", "condition_embedder.image_embedder.ff.net.2."),
    (r"^img_emb\.proj\.4\.", "condition_embedder.image_embedder.norm2."),
    (r"^img_emb\.emb_pos$", "condition_embedder.image_embedder.pos_embed"),
    (r"^head\.head\.", "proj_out."),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"^(blocks\.\d+)\.modulation$", r"\1.scale_shift_table"),
    (r"^(blocks\.\d+)\.self_attn\.", r"\1.attn1."),
    (r"^(blocks\.\d+)\.cross_attn\.", r"\1.attn2."),
    (r"^(blocks\.\d+)\.norm3\.", r"\1.norm2."),
    (r"^(blocks\.\d+)\.ffn\.0\.", r"\1.ffn.net.0.proj."),
    (r"^(blocks\.\d+)\.ffn\.2\.", r"\1.ffn.net.2."),
]


def dit_to_diffusers(key: str) -> str:
    """`blocks.0.self_attn.q.weight` -> `blocks.0.attn1.to_q.weight`."""
    key = rename_first(_TO_DIT, key)
    if ".attn" in key:
        key = re.sub(r"\.([qkv])\.(weight|bias)$", r".to_\1.\2", key)
        key = re.sub(r"\.o\.(weight|bias)$", r".to_out.0.\1", key)
        key = re.sub(r"\.([kv])_img\.", r".add_\1_proj.", key)
        key = key.replace(".norm_k_img.", ".norm_added_k.")
    return key


def vae_to_diffusers(num_res_blocks: int) -> Callable[[str], str]:
    """The inverse of `vae_from_diffusers`."""
    per_level = num_res_blocks + 2

    def upsample(match: re.Match) -> str:
        level, index = divmod(int(match[1]), per_level)
        part = "upsamplers.0" if index == num_res_blocks + 1 else f"resnets.{index}"
        return f"decoder.up_blocks.{level}.{part}."

    def rename(key: str) -> str:
        key = re.sub(r"^conv1\.", "quant_conv.", key)
        key = re.sub(r"^conv2\.", "post_quant_conv.", key)
        key = re.sub(r"^(encoder|decoder)\.conv1\.", r"\1.conv_in.", key)
        key = re.sub(r"^(encoder|decoder)\.head\.0\.", r"\1.norm_out.", key)
        key = re.sub(r"^(encoder|decoder)\.head\.2\.", r"\1.conv_out.", key)
        key = re.sub(r"\.middle\.1\.", ".mid_block.attentions.0.", key)
        key = re.sub(r"\.middle\.([02])\.", lambda m: f".mid_block.resnets.{int(m[1]) // 2}.", key)
        key = re.sub(r"^encoder\.downsamples\.", "encoder.down_blocks.", key)
        key = re.sub(r"^decoder\.upsamples\.(\d+)\.", upsample, key)
        for pattern, replacement in _VAE_RESNET:
            key = key.replace(replacement, pattern.replace("\\", ""))
        return key

    return rename
