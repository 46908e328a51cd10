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

# of Wan 2.2's 48 channels
VAE22_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.1570,
    -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055, -0.0322,
    0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520,
    0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
VAE22_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165,
    0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917,
    0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600,
    0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip


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
    """Sizes of the causal video VAE and the statistics of its latents.

    `patch`: side of the squares of pixels that come in as channels; more than 1 is the VAE of Wan 2.2, whose stages have
    shortcuts (wan.vae22). `decoder_dim` is `dim` where it is None.
    """

    dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = VAE21_MEAN
    latents_std: tuple[float, ...] = VAE21_STD
    decoder_dim: int | None = None
    patch: int = 1

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
        return self.patch * 2 ** (len(self.dim_mult) - 1)

    @property
    def pixel_channels(self) -> int:
        """Of what the encoder takes and the decoder gives."""
        return 3 * self.patch**2

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
