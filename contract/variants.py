"""The family: one row a variant, with what tells it apart, its official sizes and its recommended defaults.

Rows are recognised by the structure of a checkpoint (tensor names and shapes). Sizes: Wan 2.1 report (arXiv:2503.20314)
and the configurations of Wan-Video/Wan2.1; defaults: its README and generate.py.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from contract.parameters import Defaults


@dataclass(frozen=True)
class Structure:
    """What the tensors of a DiT say. `condition_channels`: input channels beyond the latents (mask, known frames).

    `parts` names further sub-networks that were found, such as "img_emb" or "vace_blocks".
    """

    dim: int
    num_layers: int
    latent_channels: int = 16
    condition_channels: int = 0
    parts: frozenset[str] = frozenset()
    experts: int = 1


@dataclass(frozen=True)
class Sizes:
    """Dimensions of an official DiT."""

    dim: int
    num_layers: int
    num_heads: int
    ffn_dim: int


@dataclass(frozen=True)
class Variant:
    """One row. `sizes` is None for the row that any other size of the same structure falls to.

    `missing` says what this package lacks to serve it; empty: served. `boundary`: share of the timesteps from which on the
    first of two experts answers. `unused`: parameters that mean nothing to it. `distilled_steps`: those that it was
    distilled to, without guidance; `levels`: the noise levels of these steps, where no flow shift gives them.
    """

    name: str
    title: str
    sizes: Sizes | None = None
    latent_channels: int = 16
    condition_channels: int = 0
    parts: frozenset[str] = frozenset()
    experts: int = 1
    defaults: Defaults = field(default_factory=Defaults)
    missing: str = ""
    boundary: float | None = None
    unused: frozenset[str] = frozenset({"guidance_scale_2"})
    distilled_steps: int | None = None
    levels: tuple[float, ...] = ()

    def fits(self, structure: Structure) -> bool:
        if self.sizes and (self.sizes.dim, self.sizes.num_layers) != (structure.dim, structure.num_layers):
            return False
        return all(
            getattr(self, name) == getattr(structure, name)
            for name in ("latent_channels", "condition_channels", "parts", "experts")
        )


_1_3B = Sizes(dim=1536, num_layers=30, num_heads=12, ffn_dim=8960)
_14B = Sizes(dim=5120, num_layers=40, num_heads=40, ffn_dim=13824)
_5B = Sizes(dim=3072, num_layers=30, num_heads=24, ffn_dim=14336)
_IMAGE = frozenset({"img_emb"})

# Wan-Video/Wan2.2, wan/configs: the pair of guidance scales there is (low noise, high noise)
_T2V_A14B = Defaults(steps=40, flow_shift=12.0, guidance_scale=4.0, guidance_scale_2=3.0)
_I2V_A14B = Defaults(steps=40, flow_shift=5.0, guidance_scale=3.5, guidance_scale_2=3.5)
_TI2V_5B = Defaults(width=1280, height=704, num_frames=121, fps=24, steps=50, flow_shift=5.0, guidance_scale=5.0)
_TWO: dict[str, Any] = {"experts": 2, "unused": frozenset()}

# Distilled weights look like those they come from, so wan.json must name their row. LightX2V's and Lightning's take plain
# Euler steps; TurboDiffusion's rCM (sigma_max 80) and FastVideo's DMD noise their answers again.
_FOUR_STEPS: dict[str, Any] = {"steps": 4, "flow_shift": 5.0, "guidance_scale": 1.0, "sampler": "euler"}
_RCM = (0.987654, 0.933781, 0.852895, 0.608979)
_DMD = (1.0, 0.757, 0.522)

# Of two rows that fit, the first is taken unless a manifest or wan.json names the other.
VARIANTS = (
    Variant("t2v-1.3b", "Wan2.1 T2V 1.3B", _1_3B, defaults=Defaults(guidance_scale=6.0, flow_shift=8.0)),
    Variant("t2v-14b", "Wan2.1 T2V 14B", _14B, defaults=Defaults(guidance_scale=5.0, flow_shift=5.0)),
    Variant("t2v", "text-to-video"),
    Variant("t2v-4step", "text-to-video in 4 steps", defaults=Defaults(**_FOUR_STEPS), distilled_steps=4),
    Variant(
        "t2v-rcm",
        "text-to-video by rCM",
        defaults=Defaults(**_FOUR_STEPS | {"sampler": "renoise"}),
        distilled_steps=4,
        levels=_RCM,
    ),
    Variant("i2v", "image-to-video with CLIP", None, 16, 20, _IMAGE, missing="conditioning on a picture"),
    Variant(
        "flf2v", "first and last frame", None, 16, 20, _IMAGE | {"emb_pos"}, missing="conditioning on two pictures"
    ),
    Variant("i2v-2.2", "image-to-video without CLIP", None, 16, 20, missing="conditioning on a picture"),
    Variant("t2v-a14b", "Wan2.2 A14B text-to-video", None, defaults=_T2V_A14B, boundary=0.875, **_TWO),
    Variant(
        "t2v-a14b-4step",
        "Wan2.2 A14B text-to-video in 4 steps",
        defaults=Defaults(**_FOUR_STEPS, guidance_scale_2=1.0),
        distilled_steps=4,
        boundary=0.875,
        **_TWO,
    ),
    Variant(
        "i2v-a14b",
        "Wan2.2 A14B image-to-video",
        None,
        16,
        20,
        defaults=_I2V_A14B,
        boundary=0.9,
        missing="conditioning on a picture",
        **_TWO,
    ),
    Variant("ti2v-5b", "Wan2.2 TI2V", None, 48, defaults=_TI2V_5B),
    Variant(
        "ti2v-5b-dmd",
        "Wan2.2 TI2V by DMD",
        None,
        48,
        defaults=replace(_TI2V_5B, steps=3, guidance_scale=1.0, sampler="renoise"),
        distilled_steps=3,
        levels=_DMD,
    ),
    Variant("vace", "VACE", None, 16, parts=frozenset({"vace_blocks"}), missing="VACE context blocks"),
)
BY_NAME = {variant.name: variant for variant in VARIANTS}


def recognise(structure: Structure) -> Variant | None:
    """The first row that fits, or None for a structure that is no known variant."""
    return next((variant for variant in VARIANTS if variant.fits(structure)), None)
