"""What is timed: a case names a part of the model, its size and its weights. Plain data, so that it travels to processes."""

from dataclasses import asdict, dataclass, field
from typing import Any

from contract.geometry import Geometry
from contract.variants import VARIANTS

ARCHITECTURES = {row.name: asdict(row.sizes) for row in VARIANTS if row.sizes}
GEOMETRY = Geometry()  # of Wan 2.1, which all of them have
PROMPT_TOKENS = 60  # a long sentence; the rest of the 512 rows is padding


@dataclass(frozen=True)
class Case:
    """`part`: dit, denoise, vae or text. `architecture` (random weights) or `checkpoint`. `shape` is that of the latents
    [C, T', h, w]; `request` holds parameters of a whole run."""

    name: str
    part: str
    dtype: str = "float32"
    device: str = "cpu"
    shape: tuple[int, ...] = ()
    architecture: dict = field(default_factory=dict)
    checkpoint: str = ""
    loading: dict = field(default_factory=dict)
    request: dict = field(default_factory=dict)
    threads: int = 0

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Case":
        return cls(**values | {"shape": tuple(values["shape"])})


def standard(checkpoint: str, device: str, threads: int) -> list[Case]:
    """The cases of `make bench`: real widths where a CPU can carry them, the whole loop on the shipped checkpoint."""
    two_layers = ARCHITECTURES["t2v-1.3b"] | {"num_layers": 2}
    common: dict[str, Any] = dict(device=device, threads=threads)
    return [
        Case("DiT forward, 1.3B width, 2 layers, 16x5x30x52", "dit", "float32", shape=(16, 5, 30, 52), architecture=two_layers, **common),
        Case("the same in bfloat16", "dit", "bfloat16", shape=(16, 5, 30, 52), architecture=two_layers, **common),
        Case(f"whole denoise, {checkpoint}", "denoise", checkpoint=checkpoint, **common),
        Case("VAE decode, real width, 5 x 16 x 16", "vae", shape=(16, 5, 16, 16), **common),
        Case(f"text encoder, {checkpoint}", "text", checkpoint=checkpoint, **common),
    ]  # fmt: skip


def random_weights(
    name: str, width: int, height: int, frames: int, steps: int, device: str, loading: dict
) -> list[Case]:
    """The cases of a real size without a checkpoint: one forward and, with guidance, the whole loop."""
    dtype = "bfloat16" if device.startswith("cuda") else "float32"
    shape, size = (
        GEOMETRY.latent_shape(width, height, frames),
        dict(width=width, height=height, num_frames=frames, steps=steps),
    )
    common: dict[str, Any] = dict(
        dtype=dtype, device=device, shape=shape, architecture=ARCHITECTURES[name], loading=loading
    )
    text = f"{name} {width}x{height}x{frames}"
    return [
        Case(f"DiT forward, {text}", "dit", **common),
        Case(f"whole denoise, {text}, {steps} steps", "denoise", request=size, **common),
    ]


def dit_flops(
    architecture: dict, shape: tuple[int, ...], batch: int = 1, text: int = 512, text_dim: int = 4096
) -> float:
    """Floating-point operations of one forward: matrix products and attention, as the published figures count them."""
    d, ffn, layers = architecture["dim"], architecture["ffn_dim"], architecture["num_layers"]
    s = shape[1] * shape[2] * shape[3] // GEOMETRY.patch**2
    linear = 2 * s * (6 * d * d + 2 * d * ffn) + 2 * text * 2 * d * d
    attention = 4 * s * s * d + 4 * s * text * d
    return float(batch * (layers * (linear + attention) + 2 * text * (text_dim * d + d * d)))
