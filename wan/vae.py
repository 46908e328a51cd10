"""The causal 3D VAE of Wan 2.1 (arXiv:2503.20314, section 4.1), streaming in both directions.

Every temporal operation looks only at the past, so a video can be coded in chunks if each operation remembers the
last frames of its input. That memory is the feature cache: one tensor per temporal operation, in execution order.
Parameter names are those of the official checkpoint.

The first frame is special in both directions: the encoder does not downsample it in time and the decoder does not
double it. A chunk of one latent frame therefore decodes to 1 frame if it is the first and to 4 otherwise. The
chunk length changes speed and memory, never the result; a whole video as one first chunk is the training path.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan.config import VAEConfig
from wan.errors import InvalidRequest


class FeatureCache:
    """Walks over the temporal operations of one chunk: hands out what each one kept, collects what it keeps.

    `previous` is the list of the chunk before, or None for the first chunk of a video. With `consume` that list is
    emptied, so that each entry's memory is free once it was used: else two chunks' worth is alive.
    """

    def __init__(self, previous: list[Tensor] | None, consume: bool = False):
        self.first = previous is None
        self._previous = list(reversed(previous or ()))
        if consume and previous:
            previous.clear()
        self.kept: list[Tensor] = []

    def past(self) -> Tensor | None:
        return None if self.first else self._previous.pop()

    def keep(self, frames: Tensor) -> None:
        # contiguous(): a view would keep the whole chunk alive until the next one
        self.kept.append(frames.contiguous())


class CausalConv3d(nn.Conv3d):
    """A convolution over the current and the past `kernel - 1` frames; before the video there are zeros."""

    padding: tuple[int, ...]  # never "same" or "valid"

    def __init__(self, in_channels: int, out_channels: int, kernel_size, padding: int = 0):
        super().__init__(in_channels, out_channels, kernel_size, padding=(0, padding, padding))
        self.past_frames = self.kernel_size[0] - 1

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:  # type: ignore[override]  # [B, C, T, H, W]; a cache more
        if self.past_frames == 0:
            return super().forward(x)
        past = cache.past()
        if past is None:
            past = x.new_zeros(*x.shape[:2], self.past_frames, *x.shape[3:])
        frames = torch.cat([past, x], dim=2)
        cache.keep(frames[:, :, -self.past_frames :])
        if cache.first and x.shape[2] == 1:  # the past is zero: only the newest tap counts, a third of the work
            return F.conv3d(x, self.weight[:, :, -1:], self.bias, padding=self.padding)
        return super().forward(frames)


class RMSNorm(nn.Module):
    """L2 normalisation over the channels, times sqrt(channels) and a gain."""

    def __init__(self, dim: int, spatial_dims: int):
        super().__init__()
        self.scale = dim**0.5
        self.gamma = nn.Parameter(torch.ones(dim, *(1,) * spatial_dims))

    def forward(self, x: Tensor) -> Tensor:  # [B, C, ...]
        return F.normalize(x, dim=1) * self.scale * self.gamma


class ResidualBlock(nn.Module):
    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        # The official module has a dropout at index 5; Identity keeps the parameter names.
        self.residual = nn.Sequential(
            RMSNorm(in_dim, 3), nn.SiLU(), CausalConv3d(in_dim, out_dim, 3, padding=1),
            RMSNorm(out_dim, 3), nn.SiLU(), nn.Identity(), CausalConv3d(out_dim, out_dim, 3, padding=1),
        )  # fmt: skip
        self.shortcut = CausalConv3d(in_dim, out_dim, 1) if in_dim != out_dim else None

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:  # [B, C, T, H, W]
        residual = x if self.shortcut is None else self.shortcut(x, cache)
        for layer in self.residual:
            x = layer(x, cache) if isinstance(layer, CausalConv3d) else layer(x)
        return x + residual


def _per_frame(layer, x: Tensor) -> Tensor:
    """Apply an image operation to every frame of [B, C, T, H, W]."""
    b, _, t, _, _ = x.shape
    y = layer(x.transpose(1, 2).flatten(0, 1))  # [B*T, C, H, W]
    return y.unflatten(0, (b, t)).transpose(1, 2)


class AttentionBlock(nn.Module):
    """Single-head self-attention over the pixels of each frame."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = RMSNorm(dim, 2)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:
        return x + _per_frame(self._attend, x)

    def _attend(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        qkv = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1)  # [N, 1, H*W, 3C]
        out = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
        return self.proj(out.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """Halves height and width; with `temporal` also the number of frames, except for the first frame."""

    def __init__(self, dim: int, temporal: bool):
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = nn.Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:
        x = _per_frame(self.resample, x)
        if self.time_conv is None:
            return x
        past = cache.past()
        cache.keep(x[:, :, -1:])
        if past is not None:
            return self.time_conv(torch.cat([past, x], dim=2))
        if x.shape[2] == 1:
            return x
        return torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)


class Upsample(nn.Module):
    """Doubles height and width, by default halves the channels; with `temporal` doubles every frame but the first."""

    def __init__(self, dim: int, temporal: bool, out_dim: int | None = None):
        super().__init__()
        self.resample = nn.Sequential(
            # At a factor of two this equals the reference's "nearest-exact", and ONNX has an operator for it.
            nn.Upsample(scale_factor=2.0, mode="nearest"),
            nn.Conv2d(dim, out_dim or dim // 2, 3, padding=1),
        )
        self.time_conv = CausalConv3d(dim, dim * 2, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:
        if self.time_conv is not None:
            x = self._double_frames(x, cache, self.time_conv)
        return _per_frame(self.resample, x)

    def _double_frames(self, x: Tensor, cache: FeatureCache, time_conv: CausalConv3d) -> Tensor:
        if not cache.first:
            return self._interleave(time_conv(x, cache))
        # The first frame is neither doubled nor seen by its successors: the cache starts with zeros after it.
        first, rest = x[:, :, :1], x[:, :, 1:]
        if rest.shape[2] == 0:
            cache.keep(x.new_zeros(*x.shape[:2], time_conv.past_frames, *x.shape[3:]))
            return first
        return torch.cat([first, self._interleave(time_conv(rest, cache))], dim=2)

    @staticmethod
    def _interleave(x: Tensor) -> Tensor:  # [B, 2C, T, H, W] -> [B, C, 2T, H, W], first half of the channels first
        even, odd = x.chunk(2, dim=1)
        return torch.stack([even, odd], dim=3).flatten(2, 3)


class Coder(nn.Module):
    """What encoder, decoder and their stages share: apply layers in order, passing the cache to those that use it."""

    @staticmethod
    def _run(layers, x: Tensor, cache: FeatureCache) -> Tensor:
        for layer in layers:
            takes_cache = isinstance(
                layer, CausalConv3d | ResidualBlock | AttentionBlock | Downsample | Upsample | Coder
            )
            x = layer(x, cache) if takes_cache else layer(x)
        return x


class Encoder(Coder):
    def __init__(self, config: VAEConfig):
        super().__init__()
        dims = [config.dim * m for m in (1, *config.dim_mult)]
        self.conv1 = CausalConv3d(config.pixel_channels, dims[0], 3, padding=1)
        self.downsamples = nn.ModuleList(self._levels(dims, config))
        self.middle = nn.ModuleList(
            [ResidualBlock(dims[-1], dims[-1]), AttentionBlock(dims[-1]), ResidualBlock(dims[-1], dims[-1])]
        )
        self.head = nn.ModuleList(
            [RMSNorm(dims[-1], 3), nn.SiLU(), CausalConv3d(dims[-1], 2 * config.z_dim, 3, padding=1)]
        )

    @staticmethod
    def _levels(dims: list[int], config: VAEConfig) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for level, (in_dim, out_dim) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
            for block in range(config.num_res_blocks):
                layers.append(ResidualBlock(in_dim if block == 0 else out_dim, out_dim))
            if level < len(config.temporal_downsample):
                layers.append(Downsample(out_dim, config.temporal_downsample[level]))
        return layers

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:
        return self._run([self.conv1, *self.downsamples, *self.middle, *self.head], x, cache)


class Decoder(Coder):
    def __init__(self, config: VAEConfig):
        super().__init__()
        mult = config.dim_mult[::-1]
        dims = [(config.decoder_dim or config.dim) * m for m in (mult[0], *mult)]
        self.conv1 = CausalConv3d(config.z_dim, dims[0], 3, padding=1)
        self.middle = nn.ModuleList(
            [ResidualBlock(dims[0], dims[0]), AttentionBlock(dims[0]), ResidualBlock(dims[0], dims[0])]
        )
        self.upsamples = nn.ModuleList(self._levels(dims, config))
        self.head = nn.ModuleList(
            [RMSNorm(dims[-1], 3), nn.SiLU(), CausalConv3d(dims[-1], config.pixel_channels, 3, padding=1)]
        )

    @staticmethod
    def _levels(dims: list[int], config: VAEConfig) -> list[nn.Module]:
        layers: list[nn.Module] = []
        temporal_upsample = config.temporal_downsample[::-1]
        for level, (in_dim, out_dim) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
            in_dim = in_dim if level == 0 else in_dim // 2  # the upsampler before it halved the channels
            for block in range(config.num_res_blocks + 1):
                layers.append(ResidualBlock(in_dim if block == 0 else out_dim, out_dim))
            if level < len(temporal_upsample):
                layers.append(Upsample(out_dim, temporal_upsample[level]))
        return layers

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:
        return self._run([self.conv1, *self.middle, *self.upsamples, *self.head], x, cache)


class WanVAE(nn.Module):
    """Video to normalised latents and back; (latents - mean) / std per channel is what the DiT sees."""

    encoder_type: type[Encoder] = Encoder
    decoder_type: type[Decoder] = Decoder

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = self.encoder_type(config)
        self.conv1 = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, 1)
        self.decoder = self.decoder_type(config)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, 1, 1, 1)
        mean, std = (like.new_tensor(v).view(shape) for v in (self.config.latents_mean, self.config.latents_std))
        return mean, std

    def encode_moments(self, frames: Tensor, cache: FeatureCache) -> tuple[Tensor, Tensor]:
        """One chunk of frames [B, 3, T, H, W] to the mean and log-variance of raw latents, [B, z, T', h, w] each."""
        mean, log_variance = self.conv1(self.encoder(frames, cache), cache).chunk(2, dim=1)
        return mean, log_variance

    def encode_step(self, frames: Tensor, cache: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Encode the next chunk: 1 + 4n frames if `cache` is None (first), else 4n. Returns latents and the new cache."""
        walk = FeatureCache(cache)
        mean, std = self._statistics(frames)
        latents, _ = self.encode_moments(frames, walk)
        return (latents - mean) / std, walk.kept

    def decode_step(
        self, latents: Tensor, cache: list[Tensor] | None, consume: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Decode the next n latent frames to 4n frames (4n - 3 if `cache` is None) in [-1, 1]. Returns the new cache.

        `consume` empties `cache` on the way and so needs less memory.
        """
        walk = FeatureCache(cache, consume)
        mean, std = self._statistics(latents)
        frames = self._decoded(latents * std + mean, walk)
        return frames.clamp(-1.0, 1.0), walk.kept

    def _decoded(self, latents: Tensor, cache: FeatureCache) -> Tensor:
        return self.decoder(self.conv2(latents, cache), cache)

    def channels_last(self) -> "WanVAE":
        """Keep convolution weights in channels-last order, for which oneDNN and cuDNN have the faster 3D kernels."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch leaves it out
            elif isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch leaves it out
        return self

    @torch.inference_mode()
    def encode(self, video: Tensor) -> Tensor:
        """Video [B, 3, 4n + 1, H, W] in [-1, 1] to normalised latents [B, z, n + 1, H/8, W/8].

        Raises InvalidRequest for a frame count or size that the strides do not divide.
        """
        _, channels, t, h, w = video.shape
        stride_t, stride_s = self.config.temporal_stride, self.config.spatial_stride
        if channels != 3:
            raise InvalidRequest("video channels", channels, "3")
        if (t - 1) % stride_t:
            raise InvalidRequest("video frames", t, f"{stride_t}n + 1")
        if h % stride_s or w % stride_s:
            raise InvalidRequest("video size", (w, h), f"multiples of {stride_s}")
        sizes = [1] + [stride_t] * ((t - 1) // stride_t)
        return torch.cat(list(self.encode_stream(video.split(sizes, dim=2))), dim=2)

    @torch.inference_mode()
    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the normalised latents [B, z, 1, h, w] of each chunk: a first frame, then `temporal_stride` frames each."""
        parameter, cache = next(self.parameters()), None
        for chunk in chunks:
            latents, cache = self.encode_step(chunk.to(parameter.device, parameter.dtype), cache)
            yield latents

    def decode_stream(self, latents: Tensor, chunk: int = 1) -> Iterator[Tensor]:
        """Yield the video of `latents` chunk by chunk; memory depends on `chunk`, not on the length."""
        cache = None
        for start in range(0, latents.shape[2], chunk):
            frames, cache = self.decode_step(latents[:, :, start : start + chunk], cache, consume=True)
            yield frames

    @torch.inference_mode()
    def decode(self, latents: Tensor, chunk: int = 1) -> Tensor:
        """Normalised latents [B, z, n + 1, h, w] to video [B, 3, 4n + 1, 8h, 8w] in [-1, 1]."""
        b, channels, t, h, w = latents.shape
        if channels != self.config.z_dim:
            raise InvalidRequest("latent channels", channels, str(self.config.z_dim))
        stride_t, stride_s = self.config.temporal_stride, self.config.spatial_stride
        video = latents.new_empty(b, 3, 1 + (t - 1) * stride_t, h * stride_s, w * stride_s)
        position = 0
        for frames in self.decode_stream(latents, chunk):
            video[:, :, position : position + frames.shape[2]] = frames
            position += frames.shape[2]
        return video
