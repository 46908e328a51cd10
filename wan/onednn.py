"""Linear layers and attention in float32 on a CPU by oneDNN.

PyTorch sends float32 matrix products to MKL, which uses half the vector width on processors that are not Intel's.
oneDNN uses what the processor has: twice the speed on an AMD EPYC with AVX-512, nothing lost elsewhere. Its
products are also reached with the activation fused in.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QUERY_ROWS = 512  # scores of so many queries stay in the cache
GELU_PART = 1 << 16  # values that stay in the cache between its steps
SMALL = 1 << 20  # scores of all heads; below, the calls cost more than the products


def missing(device: torch.device) -> str | None:
    """Why oneDNN's products cannot be used on `device`, or None if they can."""
    if device.type != "cpu":
        return "needs a CPU"
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "needs a PyTorch built with oneDNN"
    return None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """x weightᵀ + bias in float32, with the tanh form of GELU on top if asked; no gradients."""
    if torch.compiler.is_compiling():
        return _opaque_linear(x, weight, bias, gelu)
    post, algorithm = ("gelu", "tanh") if gelu else ("none", "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, post, [], algorithm)


def gelu(x: Tensor) -> Tensor:
    """The tanh form of GELU where no product takes it in; in place, unless it is compiled."""
    if torch.compiler.is_compiling() or x.dtype != torch.float32:
        return F.gelu(x, approximate="tanh")
    double = 2 * math.sqrt(2 / math.pi)
    for part in x.view(-1).split(GELU_PART):  # (1 + tanh(z)) / 2 = sigmoid(2 z), twice as fast as PyTorch's kernel
        part.mul_((part * part).mul_(0.044715 * double).add_(double).mul_(part).sigmoid_())
    return x


class OneDNNLinear(nn.Module):
    """An nn.Linear, sharing its parameters, optionally with the GELU that follows it."""

    def __init__(self, layer: nn.Linear, gelu: bool = False):
        super().__init__()
        self.weight, self.bias, self.gelu = layer.weight, layer.bias, gelu

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, self.gelu)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / sqrt(D) + bias) v, head by head; see `wan.attention` for shapes.

    Scores and softmax in float32, the product with the values in their own dtype, as flash attention does it.
    """
    if torch.compiler.is_compiling():
        return _opaque_attention(q, k, v, bias)
    if q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1] < SMALL:
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias)
        return out.transpose(1, 2).flatten(2)
    out = torch.empty_like(q)
    scale = q.shape[-1] ** -0.5
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            queries, keys = q[b, :, h].float(), k[b, :, h].float() * scale  # [S, D], [L, D]
            values = v[b, :, h].t().contiguous()  # [D, L]
            for rows in range(0, q.shape[1], QUERY_ROWS):
                scores = linear(queries[rows : rows + QUERY_ROWS].contiguous(), keys)
                if bias is not None:
                    scores += bias[b % bias.shape[0], h % bias.shape[1]]
                torch.softmax(scores, dim=-1, out=scores)
                out[b, rows : rows + QUERY_ROWS, h] = linear(scores.to(values.dtype), values)
    return out.flatten(2)


# For torch.compile, which takes oneDNN's products only with weights that it may freeze and repack.
@torch.library.custom_op("wan::onednn_linear", mutates_args=())
def _opaque_linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return linear(x, weight, bias, gelu)


@_opaque_linear.register_fake
def _(x, weight, bias, gelu):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("wan::onednn_attention", mutates_args=())
def _opaque_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    return attention(q, k, v, bias).contiguous()


@_opaque_attention.register_fake
def _(q, k, v, bias):
    return q.new_empty(*q.shape[:2], q.shape[2] * q.shape[3])
