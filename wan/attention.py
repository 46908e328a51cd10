"""Scaled dot-product attention behind one function."""

import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / sqrt(D) + bias) v for q [B, S, H, D] and k, v [B, L, H, D]; returns [B, S, H * D].

    `bias` broadcasts to [B, H, S, L].
    """
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias)
    return out.transpose(1, 2).flatten(2)
