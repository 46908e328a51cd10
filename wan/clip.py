"""CLIP's image tower (Radford et al. 2021, ViT-H/14 in Wan 2.1), of which the last block but one gives the tokens.

Parameter names are those of transformers' CLIPVisionModel. The last block, the norm after it and the projection are in
the files but not here; in the official file there is also a text tower.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan.config import ClipConfig
from wan.errors import InvalidRequest
from wan.keys import rename_first
from wan.tensor_files import TensorFiles

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training pictures
HEAD_DIM = 80  # of ViT-H; the official file does not say it
PATCHES = "embeddings.patch_embedding.weight"
LAYER = r"encoder\.layers\.(\d+)\."
_UNUSED = re.compile(r"textual\.|log_scale$|post_layernorm\.|head$|embeddings\.position_ids$|visual_projection\.")


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:  # [B, L, C]
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim: int, ffn_dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, ffn_dim), nn.Linear(ffn_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, config: ClipConfig):
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.self_attn, self.mlp = Attention(config.dim, config.num_heads), Mlp(config.dim, config.ffn_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nn.Module):
    def __init__(self, config: ClipConfig):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(config.dim))
        self.patch_embedding = nn.Conv2d(3, config.dim, config.patch, stride=config.patch, bias=False)
        self.position_embedding = nn.Embedding(config.tokens, config.dim)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [B, L - 1, C]
        first = self.class_embedding.expand(pixels.shape[0], 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class Encoder(nn.Module):
    def __init__(self, config: ClipConfig):
        super().__init__()
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_layers)])


class ClipVision(nn.Module):
    """Pictures to the tokens that the DiT looks at."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        self.config = config
        self.embeddings, self.encoder = Embeddings(config), Encoder(config)
        self.pre_layrnorm = nn.LayerNorm(config.dim)  # spelled as in the files

    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens [B, L, dim], all of them, of normalised pictures [B, 3, S, S]; raises InvalidRequest for another size."""
        side = self.config.image_size
        if tuple(pixels.shape[1:]) != (3, side, side):
            raise InvalidRequest("picture shape", tuple(pixels.shape), f"[B, 3, {side}, {side}]")
        x = self.pre_layrnorm(self.embeddings(pixels))
        for layer in self.encoder.layers:
            x = layer(x)
        return x


_FROM_OFFICIAL = [
    (r"^visual\.cls_embedding$", "embeddings.class_embedding"),
    (r"^visual\.patch_embedding\.", "embeddings.patch_embedding."),
    (r"^visual\.pos_embedding$", "embeddings.position_embedding.weight"),
    (r"^visual\.pre_norm\.", "pre_layrnorm."),
    (r"^visual\.post_norm\.", "post_layernorm."),
    (r"^visual\.transformer\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^visual\.transformer\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.out_proj."),
    (r"^visual\.transformer\.(\d+)\.attn\.to_qkv\.", r"encoder.layers.\1.self_attn.to_qkv."),
    (r"^visual\.transformer\.(\d+)\.mlp\.0\.", r"encoder.layers.\1.mlp.fc1."),
    (r"^visual\.transformer\.(\d+)\.mlp\.2\.", r"encoder.layers.\1.mlp.fc2."),
    (r"^visual\.", ""),
]


def from_official(key: str) -> str:
    """`visual.transformer.0.norm1.weight` -> `encoder.layers.0.layer_norm1.weight`."""
    return rename_first(_FROM_OFFICIAL, key)


def from_transformers(key: str) -> str:
    """The names of transformers 5; its version 4 wrote them with a prefix."""
    return key.removeprefix("vision_model.")


def separate(tensors: TensorFiles) -> TensorFiles:
    """The official file's joined tensors as single ones, and its embeddings without their leading 1."""
    for name in sorted(tensors.names):
        if ".to_qkv." in name:
            tensors.split(name, [name.replace("to_qkv", f"{part}_proj") for part in "qkv"])
    for name in ("embeddings.class_embedding", "embeddings.position_embedding.weight"):
        while name in tensors and tensors.shape(name)[0] == 1:
            tensors.unwrap(name)
    return tensors


def config(tensors: TensorFiles, num_heads: int | None = None) -> ClipConfig:
    """Architecture of the tower from its tensors."""
    dim, _, patch, _ = tensors.shape(PATCHES)
    positions, _ = tensors.shape("embeddings.position_embedding.weight")
    return ClipConfig(
        dim=dim,
        num_layers=tensors.count(LAYER) - 1,
        num_heads=num_heads or dim // HEAD_DIM,
        ffn_dim=tensors.shape("encoder.layers.0.mlp.fc1.weight")[0],
        patch=patch,
        image_size=round((positions - 1) ** 0.5) * patch,
    )


def unused(tensors: TensorFiles) -> frozenset[str]:
    """What the files hold beyond the tower as it is used: its end and the text tower."""
    last = f"encoder.layers.{tensors.count(LAYER) - 1}."
    return frozenset(name for name in tensors.names if _UNUSED.match(name) or name.startswith(last))
