"""Architecture parameters of the three networks.

Numbers: Wan 2.1 technical report (arXiv:2503.20314) and the configurations of Wan-Video/Wan2.1.
"""

from dataclasses import dataclass

from contract.geometry import Geometry
from wan.errors import CheckpointError

VAE21_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
              0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)  # fmt: skip
VAE21_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
             3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)  # fmt: skip


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise CheckpointError(message)


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of the diffusion transformer."""

    dim: int
    num_layers: int
    num_heads: int
    ffn_dim: int
    in_channels: int = 16  # of the patch embedding: the latents and what they are conditioned on
    out_channels: int = 16  # of the latents: noise, solver state, preview and VAE have as many
    text_dim: int = 4096
    freq_dim: int = 256
    text_len: int = 512
    image_dim: int = 0  # width of the picture tokens; 0: the model takes none
    image_positions: int = 0  # length of their position table; 0: it has none
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    def __post_init__(self):
        _require(self.dim % self.num_heads == 0, f"DiT dim {self.dim} is not a multiple of num_heads {self.num_heads}")
        _require(self.head_dim % 2 == 0, f"DiT head_dim {self.head_dim} is odd; rotary embedding needs pairs")
        _require(self.patch_size == (1, 2, 2), f"DiT patch_size {self.patch_size}; only (1, 2, 2) is supported")
        _require(self.freq_dim % 2 == 0, f"DiT freq_dim {self.freq_dim} is odd")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def rope_dims(self) -> tuple[int, int, int]:
        """Head channels given to time, height and width; 44, 42, 42 at head_dim 128."""
        spatial = 2 * (self.head_dim // 6)
        return self.head_dim - 2 * spatial, spatial, spatial


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the causal video VAE and the statistics of its latents."""

    dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = VAE21_MEAN
    latents_std: tuple[float, ...] = VAE21_STD

    def __post_init__(self):
        _require(
            len(self.temporal_downsample) == len(self.dim_mult) - 1,
            f"VAE temporal_downsample has {len(self.temporal_downsample)} entries, needs {len(self.dim_mult) - 1}",
        )
        for name in ("latents_mean", "latents_std"):
            length = len(getattr(self, name))
            _require(length == self.z_dim, f"VAE {name} has {length} entries, z_dim is {self.z_dim}")
        _require(all(s > 0 for s in self.latents_std), "VAE latents_std must be positive")

    @property
    def spatial_stride(self) -> int:
        return 2 ** (len(self.dim_mult) - 1)

    @property
    def temporal_stride(self) -> int:
        return 2 ** sum(self.temporal_downsample)


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of CLIP's image tower (Radford et al. 2021); `num_layers` are those that are used, all but the last."""

    dim: int = 1280
    num_layers: int = 31
    num_heads: int = 16
    ffn_dim: int = 5120
    patch: int = 14
    image_size: int = 224

    def __post_init__(self):
        _require(self.dim % self.num_heads == 0, f"CLIP dim {self.dim} is not a multiple of num_heads {self.num_heads}")

    @property
    def tokens(self) -> int:
        """Of one picture: the class token and the patches."""
        return 1 + (self.image_size // self.patch) ** 2


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the umT5 encoder (Chung et al., UniMax, ICLR 2023)."""

    vocab_size: int = 256384
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128


def geometry(dit: DiTConfig, vae: VAEConfig) -> Geometry:
    """Strides, patch and latent channels of a checkpoint. Raises CheckpointError if the networks do not fit together."""
    _require(
        dit.out_channels == vae.z_dim,
        f"the DiT predicts {dit.out_channels} channels, the VAE has {vae.z_dim} latent ones",
    )
    return Geometry(vae.z_dim, vae.temporal_stride, vae.spatial_stride, dit.patch_size[1])
