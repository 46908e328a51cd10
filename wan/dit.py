"""The diffusion transformer of Wan 2.1 (arXiv:2503.20314, section 4.2), parameter names as in the official checkpoint.

A forward pass falls into work that depends only on the request and work that depends on the latents. The former is
done once: `Sources` (projections of text and picture, cross-attention keys and values), `time_embeddings` (all steps at once)
and the rotary tables. `WanDiT.forward` composes them for a single call; the denoise loop keeps them.

Whatever the weights are in, the residual stream, modulation, norms and head are float32, as under the official code's
autocast: in bfloat16 each of some ninety additions would round the whole stream. What a timestep means to the tokens
is said in `modulated_norm` and `add_gated` alone.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan.attention import sdpa
from wan.config import DiTConfig
from wan.errors import InvalidRequest


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # it is kept, and who asks next may train
def rotary_tables(dims: tuple[int, int, int], grid: tuple[int, int, int], device: torch.device) -> Tensor:
    """Cosine and sine for each token of a (frames, rows, columns) grid, float32 [1, S, 1, head_dim / 2, 2].

    Each axis rotates its own share `dims` of the head channels, theta 10000 (Su et al., RoFormer, 2021).
    Computed in float64: float32 angles lose the phase of distant positions.
    """
    angles = []
    for axis, (dim, length) in enumerate(zip(dims, grid, strict=True)):
        frequency = 1.0 / 10000.0 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
        shape = [1, 1, 1, dim // 2]
        shape[axis] = length
        angles.append(angle.view(shape).expand(*grid, -1))
    phase = torch.cat(angles, dim=-1).flatten(0, 2)[None, :, None]
    return torch.stack([phase.cos(), phase.sin()], dim=-1).float().to(device)


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotate the channel pairs (2i, 2i + 1) of [B, S, H, D] by the angles of `rotary_tables`."""
    pairs = x.float().unflatten(-1, (-1, 2))
    # One pass, forty times faster on a CPU than strided halves; the compiler knows no complex numbers.
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotary))
    else:
        # (a, b) cos + (b, a) (-sin, sin): the compiler would write out two halves and their float32 union
        cos, sin = rotary.unsqueeze(-2).unbind(-1)
        rotated = pairs * cos + pairs.flip(-1) * (sin * torch.arange(-1, 2, 2, device=x.device))
    return rotated.flatten(-2).type_as(x)


def sinusoid(timestep: Tensor, dim: int) -> Tensor:
    """Embedding of float64 timesteps [N] in 0..1000: `dim / 2` cosines, then as many sines, float32 [N, dim]."""
    half = dim // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=timestep.device) / half)
    phase = timestep[:, None] * frequency
    return torch.cat([phase.cos(), phase.sin()], dim=-1).float()


class RMSNorm(nn.Module):
    """Root mean square normalisation over the whole model width, all heads together."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # one pass; F.rms_norm takes three on a CPU
        scale = torch.rsqrt(norm.square() / x.shape[-1] + self.eps)
        return (wide * scale).type_as(x) * self.weight


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float, still: int = 0) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift for x [B, S, C] and shift, scale [B or 1, 1, C], all float32.

    With `still` tokens at another timestep than the rest, shift and scale are [2, 1, C]: theirs, then that of the rest.
    """
    if still:
        parts = (x[:, :still], shift[:1], scale[:1]), (x[:, still:], shift[1:], scale[1:])
        return torch.cat([modulated_norm(*part, eps) for part in parts], dim=1)
    if scale.shape[0] == 1:  # all samples at the same timestep: the kernel's own weight and bias
        return F.layer_norm(x, x.shape[-1:], 1 + scale.view(-1), shift.view(-1), eps)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], None, None, eps), 1 + scale)


def add_gated(x: Tensor, y: Tensor, gate: Tensor, still: int = 0) -> Tensor:
    """x + y * gate for float32 x [B, S, C] and gate [B or 1, 1, C], or [2, 1, C] as in `modulated_norm`."""
    if still:
        parts = (x[:, :still], y[:, :still], gate[:1]), (x[:, still:], y[:, still:], gate[1:])
        return torch.cat([add_gated(*part) for part in parts], dim=1)
    return torch.addcmul(x, y.float(), gate)


def apply_each(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """The outputs of layers that take the same input."""
    return [layer(x) for layer in layers]


class SelfAttention(nn.Module):
    """`attend` computes the attention itself, `project` its inputs; `wan.attention.use` and `wan.fp8.use` exchange them."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        dim = config.dim
        self.head_dim = config.head_dim
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim, config.eps), RMSNorm(dim, config.eps)
        self.attend, self.project = sdpa, apply_each

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))  # [B, S, H, D]

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:  # [B, S, C]
        q, k, v = self.project((self.q, self.k, self.v), x)
        q = rotate(self._heads(self.norm_q(q)), rotary)
        k = rotate(self._heads(self.norm_k(k)), rotary)
        return self.o(self.attend(q, k, self._heads(v)))


class Source(NamedTuple):
    """What cross-attention looks at under one softmax: keys and values [B, L, H, D], bias [B, 1, 1, L] if any."""

    keys: Tensor
    values: Tensor
    bias: Tensor | None

    def select(self, index: int) -> "Source":
        """The part of one batch element."""
        part = slice(index, index + 1)
        return Source(self.keys[part], self.values[part], None if self.bias is None else self.bias[part])


class CrossAttention(SelfAttention):
    """Attention from video tokens to what was given with the request; no rotary embedding."""

    def __init__(self, config: DiTConfig):
        super().__init__(config)
        if config.image_dim:
            self.k_img, self.v_img = nn.Linear(config.dim, config.dim), nn.Linear(config.dim, config.dim)
            self.norm_k_img = RMSNorm(config.dim, config.eps)

    def text(self, context: Tensor, bias: Tensor | None) -> Source:  # [B, L, C]
        k, v = self.project((self.k, self.v), context)
        return Source(self._heads(self.norm_k(k)), self._heads(v), bias)

    def image(self, tokens: Tensor, batch: int) -> Source:
        """Of picture tokens [1 or B, L, C]: one picture serves a batch without a copy."""
        keys, values = self._heads(self.norm_k_img(self.k_img(tokens))), self._heads(self.v_img(tokens))
        return Source(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1), None)

    def forward(self, x: Tensor, sources: tuple[Source, ...]) -> Tensor:  # type: ignore[override]  # asked otherwise
        """The answers of all sources, each with a softmax of its own, are added up."""
        q = self._heads(self.norm_q(self.q(x)))
        return self.o(reduce(torch.add, [self.attend(q, *source) for source in sources]))


class Block(nn.Module):
    def __init__(self, config: DiTConfig):
        super().__init__()
        self.eps = config.eps
        self.self_attn = SelfAttention(config)
        self.norm3 = nn.LayerNorm(config.dim, eps=config.eps)
        self.cross_attn = CrossAttention(config)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim), nn.GELU("tanh"), nn.Linear(config.ffn_dim, config.dim)
        )
        self.modulation = nn.Parameter(torch.zeros(1, 6, config.dim))

    @property
    def dtype(self) -> torch.dtype:
        """In which the linear layers and attention compute."""
        return cast(Any, self.ffn[0]).bias.dtype

    def forward(
        self, x: Tensor, modulation: Tensor, rotary: Tensor, sources: tuple[Source, ...], still: int = 0
    ) -> Tensor:
        """Residual stream [B, S, C] after the block; `modulation` [B or 1, 6, C], or [2, 6, C] where the first `still`
        tokens are at a timestep of their own. All float32."""
        shift_sa, scale_sa, gate_sa, shift_ff, scale_ff, gate_ff = (self.modulation + modulation).unsqueeze(2).unbind(1)
        normed = modulated_norm(x, shift_sa, scale_sa, self.eps, still)
        x = add_gated(x, self.self_attn(normed.to(self.dtype), rotary), gate_sa, still)
        normed = F.layer_norm(x, x.shape[-1:], self.norm3.weight.float(), self.norm3.bias.float(), self.eps)
        x = x + self.cross_attn(normed.to(self.dtype), sources)
        normed = modulated_norm(x, shift_ff, scale_ff, self.eps, still)
        return add_gated(x, self.ffn(normed.to(self.dtype)), gate_ff, still)


class Head(nn.Module):
    def __init__(self, config: DiTConfig):
        super().__init__()
        self.eps = config.eps
        self.head = nn.Linear(config.dim, config.out_channels * math.prod(config.patch_size))
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim))

    def forward(self, x: Tensor, time: Tensor, still: int = 0) -> Tensor:  # [B, S, C], [B, C] or [2, C] float32
        shift, scale = (self.modulation + time.unsqueeze(1)).unsqueeze(2).unbind(1)
        return self.head(modulated_norm(x, shift, scale, self.eps, still).to(self.head.weight.dtype))


class ImageProjection(nn.Module):
    """CLIP's tokens of one or more pictures to the model's width; a position table tells first and last apart."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.width = width = config.image_dim
        self.proj = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, config.dim),
            nn.LayerNorm(config.dim),
        )
        self.emb_pos = nn.Parameter(torch.zeros(1, config.image_positions, width)) if config.image_positions else None

    def forward(self, tokens: Tensor) -> Tensor:  # [B, L, image_dim] -> [B, L, dim]
        """Raises InvalidRequest for another width, or another number of tokens than there are positions."""
        length = tokens.shape[1] if self.emb_pos is None else self.emb_pos.shape[1]
        if tokens.dim() != 3 or tuple(tokens.shape[1:]) != (length, self.width):
            raise InvalidRequest("image tokens shape", tuple(tokens.shape), f"[B, {length}, {self.width}]")
        tokens = tokens.to(next(self.proj.parameters()).dtype)
        return self.proj(tokens if self.emb_pos is None else tokens + self.emb_pos)


@dataclass
class Sources:
    """What a request gives to the blocks: for each of them the sources of its cross-attention."""

    sources: list[tuple[Source, ...]]

    @property
    def batch(self) -> int:
        return self.sources[0][0].keys.shape[0]

    def select(self, index: int) -> "Sources":
        """The conditioning of one batch element."""
        return Sources([tuple(source.select(index) for source in block) for block in self.sources])


def _log_counts(counts: Tensor, dtype: torch.dtype) -> Tensor:
    """Scores [B, R] in `dtype` whose exponentials add up to `counts` [B].

    One row is enough in float32. In bfloat16 it would be off by up to 1.6 % of n, so the first rows are rounded down
    and each next one takes what is left.
    """
    down = 1 - torch.finfo(torch.bfloat16).eps / 2
    left, rows = counts.double(), []
    for factor in (1,) if dtype == torch.float32 else (down, down, 1):
        rows.append((factor * left.log()).to(dtype))
        left = (left - rows[-1].double().exp()).clamp(min=0)
    return torch.stack(rows, dim=1)


def _fold_padding(context: Tensor) -> tuple[Tensor, Tensor | None]:
    """Replace the zero rows that pad a text to its full length by one row of equal attention weight.

    Wan attends to the padding. Its rows are all alike, and n equal keys with one value are the same as one key whose
    score is raised by log n (as a few, where log n needs them). It shortens 512 rows to those of the prompt. Returns
    [B, L', D] and the bias [B, 1, 1, L'], or the context itself if there is nothing to gain.
    """
    used = context.ne(0).any(dim=-1)
    positions = torch.arange(1, context.shape[1] + 1, device=context.device)
    lengths = (used * positions).amax(dim=1)
    scores = _log_counts(context.shape[1] - lengths, context.dtype)
    folded = int(lengths.max()) + scores.shape[1]
    if folded >= context.shape[1]:
        return context, None
    bias = torch.zeros(context.shape[0], folded, dtype=context.dtype, device=context.device)
    bias.masked_fill_(positions[None, :folded] > lengths[:, None], -torch.inf)
    columns = lengths[:, None] + torch.arange(scores.shape[1], device=context.device)
    return context[:, :folded], bias.scatter_(1, columns, scores)[:, None, None, :]


class WanDiT(nn.Module):
    """Predicts the velocity noise - x0 of normalised latents at a timestep, given the text embedding."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        patch = config.patch_size
        self.patch_embedding = nn.Conv3d(config.in_channels, config.dim, kernel_size=patch, stride=patch)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, config.dim), nn.GELU("tanh"), nn.Linear(config.dim, config.dim)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(config.dim, config.dim * 6))
        if config.image_dim:
            self.img_emb = ImageProjection(config)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        self.head = Head(config)
        self.engine: dict = {}  # how it computes, for INFO; set by wan.optimize
        self.attention_ms: dict[str, float] = {}  # of the backends that its attention was chosen from, likewise
        self.fold_text = True  # see _fold_padding

    @property
    def dtype(self) -> torch.dtype:
        """In which the blocks' linear layers and attention compute."""
        return cast(Block, self.blocks[0]).dtype

    @property
    def device(self) -> torch.device:
        return self.patch_embedding.weight.device

    def time_embeddings(self, timesteps: Sequence[float] | Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps [N] in 0..1000 to the embedding [N, dim] and the block modulation [N, 6, dim], both float32."""
        embedding: Any = self.time_embedding[0]
        timesteps = torch.as_tensor(timesteps, dtype=torch.float64, device=self.device)
        x = sinusoid(timesteps, self.config.freq_dim).to(embedding.weight.dtype)
        time = self.time_embedding(x)
        return time.float(), self.time_projection(time).unflatten(-1, (6, -1)).float()

    def conditioning(self, context: Tensor, image_tokens: Tensor | None = None) -> Sources:
        """Text embeddings [B, L, text_dim], zero rows as padding, to the keys and values of all blocks.

        `image_tokens` [1 or B, L', image_dim] are a second source. Raises InvalidRequest where the model needs them and
        they are missing, or the other way round.
        """
        if (image_tokens is not None) != bool(self.config.image_dim):
            allowed = (
                f"[B, L, {self.config.image_dim}]" if self.config.image_dim else "none, as this model takes no picture"
            )
            raise InvalidRequest("image tokens", None if image_tokens is None else "given", allowed)
        context = context.to(self.dtype)
        context, bias = _fold_padding(context) if self.fold_text else (context, None)
        text = self.text_embedding(context)
        image = None if image_tokens is None else self.img_emb(image_tokens).to(self.dtype)
        sources: list[tuple[Source, ...]] = []
        for block in cast("Iterable[Block]", self.blocks):
            of_text = block.cross_attn.text(text, bias)
            sources.append((of_text,) if image is None else (of_text, block.cross_attn.image(image, text.shape[0])))
        return Sources(sources)

    def rotary(self, latents_shape) -> Tensor:
        """Rotary table for latents of shape [..., T, h, w]."""
        grid = tuple(size // patch for size, patch in zip(latents_shape[-3:], self.config.patch_size, strict=True))
        return rotary_tables(self.config.rope_dims, grid, self.device)

    def patchify(self, latents: Tensor) -> Tensor:
        """The residual stream's start, float32 [B, S, dim], frame-major, then rows, of the input [B, in, T, h, w].

        The input is the latents (`out_channels`) and, where `in_channels` is more, what the model is conditioned on.
        Raises InvalidRequest if the channels or the (even) height and width do not fit.
        """
        if latents.dim() != 5 or latents.shape[1] != self.config.in_channels:
            raise InvalidRequest("latents shape", tuple(latents.shape), f"[B, {self.config.in_channels}, T, h, w]")
        if latents.shape[3] % 2 or latents.shape[4] % 2:
            raise InvalidRequest("latents size", tuple(latents.shape[3:]), "even height and width")
        tokens = self.patch_embedding(latents.to(self.dtype)).flatten(2).transpose(1, 2)
        # contiguous: the residual keeps this order through all blocks, and every norm would copy it otherwise
        return tokens.contiguous().float()

    def run_blocks(self, x: Tensor, modulation: Tensor, rotary, conditioning: Sources, still: int = 0) -> Tensor:
        for block, sources in zip(self.blocks, conditioning.sources, strict=True):
            x = block(x, modulation, rotary, sources, still)
        return x

    def project(self, x: Tensor, time: Tensor, still: int = 0) -> Tensor:  # [B, S, dim] -> [B, S, values of a patch]
        return self.head(x, time, still)

    def unpatchify(self, x: Tensor, latents_shape) -> Tensor:  # [B, S, values of a patch] -> [B, out, T, h, w]
        t, h, w = latents_shape[-3:]
        _, ph, pw = self.config.patch_size
        x = x.view(x.shape[0], t, h // ph, w // pw, ph, pw, -1)
        return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(x.shape[0], -1, t, h, w)

    def forward(self, latents: Tensor, timestep: Tensor, context: Tensor, image_tokens: Tensor | None = None) -> Tensor:
        """Velocity [B, out, T, h, w] of latents [B, in, T, h, w] at timesteps [B] under text [B, L, text_dim] and, for a
        model that takes pictures, their tokens [1 or B, L', image_dim]."""
        time, modulation = self.time_embeddings(timestep)
        conditioning = self.conditioning(context, image_tokens)
        x = self.run_blocks(self.patchify(latents), modulation, self.rotary(latents.shape), conditioning)
        return self.unpatchify(self.project(x, time), latents.shape)
