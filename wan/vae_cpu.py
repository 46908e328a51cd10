"""The VAE's convolutions with fewer operations and no detours, for a CPU in float32. Applied from outside, exact to rounding.

- Two output frames of a 3 x 3 x 3 convolution from four products with 3 x 3 kernels instead of six: Winograd's F(2, 3)
  along time (Lavin and Gray 2016). Its sums and differences are over whole frames and cost little.
- Doubling the size and a 3 x 3 convolution as one 2 x 2 convolution with four outputs per pixel: 16 products, not 36.
- Every layer keeps the channels-last order and goes to oneDNN, which PyTorch leaves for small or 1 x 1 inputs.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan import onednn
from wan.vae import CausalConv3d, FeatureCache, ResidualBlock, RMSNorm, Upsample, WanVAE


def _empty(like: Tensor, channels: int, frames: int, height: int, width: int) -> Tensor:
    """[B, C, T, H, W] in channels-last order."""
    return like.new_empty(like.shape[0], frames, height, width, channels).permute(0, 4, 1, 2, 3)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...]) -> Tensor:
    ones = (1,) * len(padding)
    return torch.mkldnn_convolution(x, weight, bias, padding, ones, ones, 1)


def _channels_last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


class FastConv(CausalConv3d):
    """Takes the place of a CausalConv3d, whose parameters it shares."""

    def __init__(self, layer: CausalConv3d):
        nn.Module.__init__(self)
        self.__dict__.update(layer.__dict__)
        self._middle: tuple[Tensor, Tensor] | None = None  # the two kernels of F(2, 3) that are sums

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:  # type: ignore[override]  # [B, C, T, H, W]; a cache more
        if self.past_frames == 0:
            flat = onednn.linear(x.permute(0, 2, 3, 4, 1).contiguous(), self.weight.flatten(1), self.bias)
            return flat.permute(0, 4, 1, 2, 3)
        frames = self._after_past(x, cache)
        frames[:, :, self.past_frames :] = x
        return self._convolved(frames, cache)

    def of_activated(self, x: Tensor, norm: "FastNorm", cache: FeatureCache) -> Tensor:
        """This layer on SiLU(norm(x)), which is made in the very place where the convolution reads it."""
        frames = self._after_past(x, cache)
        activated = frames[:, :, self.past_frames :]
        norm.into(x, activated)
        del x  # its memory is needed for what follows
        F.silu(activated, inplace=True)
        return self._convolved(frames, cache)

    def _after_past(self, x: Tensor, cache: FeatureCache) -> Tensor:
        """Room for the frames of x behind those that were kept."""
        past = cache.past()
        frames = _empty(x, x.shape[1], x.shape[2] + self.past_frames, *x.shape[3:])
        frames[:, :, : self.past_frames] = 0 if past is None else past
        return frames

    def _convolved(self, frames: Tensor, cache: FeatureCache) -> Tensor:
        cache.kept.append(frames[:, :, -self.past_frames :].clone(memory_format=torch.channels_last_3d))
        count = frames.shape[2] - self.past_frames
        if self.kernel_size[1] == 3:
            if cache.first and count == 1:  # the past is zero
                return self._plane(frames[:, :, -1], 2, self.bias).unsqueeze(2)
            if count % 2 == 0:
                return self._pairs(frames)
        return _convolve(frames, self.weight, self.bias, self.padding)

    def _plane(self, x: Tensor, tap: int, bias: Tensor | None) -> Tensor:  # [N, C, H, W]
        return _convolve(x, _channels_last(self.weight[:, :, tap]), bias, self.padding[1:])

    def _sums(self) -> tuple[Tensor, Tensor]:
        if self._middle is None:
            first, second, third = (self.weight[:, :, i] for i in range(3))
            outer = first + third
            self._middle = _channels_last((outer + second) / 2), _channels_last((outer - second) / 2)
        return self._middle

    def _pairs(self, frames: Tensor) -> Tensor:  # [B, C, T + 2, H, W] to [B, C', T, H, W] for even T
        f = frames.transpose(1, 2)
        count = f.shape[1] - 2
        d0, d1, d2, d3 = (f[:, i : i + count : 2] for i in range(4))  # [B, T / 2, C, H, W]
        plus, minus = self._sums()
        padding = self.padding[1:]
        middle = _convolve((d1 + d2).flatten(0, 1), plus, self.bias, padding)
        other = _convolve((d2 - d1).flatten(0, 1), minus, None, padding)
        out = _empty(frames, middle.shape[1], count, *middle.shape[2:])
        both = out.transpose(1, 2).flatten(0, 1)  # frames of a sample are neighbours, and their count is even
        even, odd = both[0::2], both[1::2]
        torch.add(middle, other, out=even)
        even.add_(self._plane((d0 - d2).flatten(0, 1), 0, None))
        torch.sub(middle, other, out=odd)
        del middle, other  # two planes less at the peak
        odd.sub_(self._plane((d1 - d3).flatten(0, 1), 2, None))
        return out


class FastUpsample(Upsample):
    """Takes the place of an Upsample, whose parts it shares."""

    def __init__(self, layer: Upsample):
        nn.Module.__init__(self)
        self.__dict__.update(layer.__dict__)
        self._phases = self._phase_kernels()

    def _phase_kernels(self) -> Tensor:
        """[4 C', C, 2, 2]: what each of a pixel's four descendants takes from the 2 x 2 pixels at its corner."""
        weight = cast(nn.Conv2d, self.resample[1]).weight
        rows = (torch.stack([weight[:, :, 0], weight[:, :, 1] + weight[:, :, 2]], 2),
                torch.stack([weight[:, :, 0] + weight[:, :, 1], weight[:, :, 2]], 2))  # fmt: skip
        kernels = []
        for r in rows:
            kernels.append(torch.stack([r[..., 0], r[..., 1] + r[..., 2]], -1))
            kernels.append(torch.stack([r[..., 0] + r[..., 1], r[..., 2]], -1))
        return _channels_last(torch.cat(kernels))

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:
        if self.time_conv is not None:
            x = self._double_frames(x, cache, self.time_conv)
        b, c, t, h, w = x.shape
        bias = cast(Any, self.resample[1]).bias.repeat(4)
        y = _convolve(x.transpose(1, 2).reshape(b * t, c, h, w), self._phases, bias, (1, 1))
        out = _empty(x, y.shape[1] // 4, t, 2 * h, 2 * w)
        frames = out.transpose(1, 2).flatten(0, 1)
        for phase, part in enumerate(y.chunk(4, dim=1)):
            row, column = divmod(phase, 2)
            frames[:, :, row::2, column::2] = part[:, :, row : row + h, column : column + w]
        return out

    @staticmethod
    def _interleave(x: Tensor) -> Tensor:
        _, c, t, h, w = x.shape
        out = _empty(x, c // 2, 2 * t, h, w)
        out[:, :, 0::2], out[:, :, 1::2] = x.chunk(2, dim=1)
        return out


class FastNorm(nn.Module):
    """Takes the place of an RMSNorm: two passes over the features instead of four."""

    def __init__(self, layer: RMSNorm):
        super().__init__()
        self.scale, self.gamma = layer.scale, layer.gamma

    def forward(self, x: Tensor) -> Tensor:  # [B, C, ...]
        out = torch.empty_like(x)
        self.into(x, out)
        return out

    def into(self, x: Tensor, out: Tensor) -> None:
        """The same, written to `out`."""
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        torch.mul(x, length.clamp_min_(1e-12).reciprocal_().mul_(self.scale), out=out)
        out.mul_(self.gamma)


class FastResidualBlock(ResidualBlock):
    """Takes the place of a ResidualBlock, whose parts it shares."""

    def __init__(self, block: ResidualBlock):
        nn.Module.__init__(self)
        self.__dict__.update(block.__dict__)

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:  # [B, C, T, H, W]
        residual = x if self.shortcut is None else self.shortcut(x, cache)
        norm1, _, conv1, norm2, _, _, conv2 = cast(Any, self.residual)
        return conv2.of_activated(conv1.of_activated(x, norm1, cache), norm2, cache).add_(residual)


def accelerate(vae: WanVAE) -> WanVAE:
    """Exchange the layers of `vae` in place for inference on a CPU in float32; elsewhere nothing happens."""
    weight = vae.conv2.weight
    if onednn.missing(weight.device) or weight.dtype != torch.float32:
        return vae
    for parent in list(vae.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is CausalConv3d:
                setattr(parent, name, FastConv(layer))
            elif type(layer) is RMSNorm:
                setattr(parent, name, FastNorm(layer))
            elif isinstance(layer, nn.SiLU):
                setattr(parent, name, nn.SiLU(inplace=True))  # what it gets is the norm's own result
    for parent in list(vae.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is Upsample:
                setattr(parent, name, FastUpsample(layer))
            elif type(layer) is ResidualBlock:
                setattr(parent, name, FastResidualBlock(layer))
    return vae
