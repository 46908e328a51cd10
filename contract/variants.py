"""The family: one row a variant, with what tells it apart, its official sizes and its recommended defaults.

Rows are recognised by the structure of a checkpoint (tensor names and shapes). Sizes: Wan 2.1 report (arXiv:2503.20314)
and the configurations of Wan-Video/Wan2.1; defaults: its README and generate.py.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from contract.parameters import NEGATIVE_PROMPT, Defaults


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

    `takes` names the media (`contract.media`) that a request may carry, `needs` those it must. `missing` says what this
    package lacks to serve it; empty: served. `boundary`: share of the timesteps from which on the first of two experts
    answers. `unused`: parameters that mean nothing to it. `distilled_steps`: those that it was distilled to, without
    guidance; `levels`: the noise levels of these steps, where no flow shift gives them.
    """

    name: str
    title: str
    sizes: Sizes | None = None
    latent_channels: int = 16
    condition_channels: int = 0
    parts: frozenset[str] = frozenset()
    experts: int = 1
    defaults: Defaults = field(default_factory=Defaults)
    takes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
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
_TWO_IMAGES = _IMAGE | {"emb_pos"}
_CLIP, _START, _ENDS = ("video",), ("image", "video"), ("image", "last_image")
_ALL = ("image", "last_image", "video")
_FIRST = ("image", "video")  # the first latent frame stands still, and a clip is changed
_480P: dict[str, Any] = {"width": 832, "height": 480}
_720P: dict[str, Any] = {"width": 1280, "height": 720}
_STEADY: dict[str, Any] = {"negative_prompt": "镜头晃动，" + NEGATIVE_PROMPT, "guidance_scale": 5.0}
_UNCUT: dict[str, Any] = {"negative_prompt": "镜头切换，镜头晃动，" + NEGATIVE_PROMPT, "guidance_scale": 5.0}
_FUN = Defaults(steps=50, sampler="euler", flow_shift=5.0, guidance_scale=6.0)
_FLF2V = Defaults(steps=50, flow_shift=16.0, **_UNCUT, **_720P)

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
    Variant("t2v-1.3b", "Wan2.1 T2V 1.3B", _1_3B, defaults=Defaults(guidance_scale=6.0, flow_shift=8.0), takes=_CLIP),
    Variant("t2v-14b", "Wan2.1 T2V 14B", _14B, defaults=Defaults(guidance_scale=5.0, flow_shift=5.0), takes=_CLIP),
    Variant("t2v", "text-to-video", takes=_CLIP),
    Variant("t2v-4step", "text-to-video in 4 steps", defaults=Defaults(**_FOUR_STEPS), takes=_CLIP, distilled_steps=4),
    Variant(
        "t2v-rcm", "text-to-video by rCM",
        defaults=Defaults(**_FOUR_STEPS | {"sampler": "renoise"}), takes=_CLIP, distilled_steps=4, levels=_RCM,
    ),
    Variant(
        "i2v-14b-480p", "Wan2.1 I2V 14B 480P", _14B, 16, 20, _IMAGE,
        defaults=Defaults(steps=40, flow_shift=3.0, **_STEADY, **_480P), takes=_START, needs=("image",),
    ),
    Variant(
        "i2v-14b-720p", "Wan2.1 I2V 14B 720P", _14B, 16, 20, _IMAGE,
        defaults=Defaults(steps=40, flow_shift=5.0, **_STEADY, **_720P), takes=_START, needs=("image",),
    ),
    Variant("fun-inp-1.3b", "Wan2.1 Fun 1.3B InP", _1_3B, 16, 20, _IMAGE, defaults=_FUN, takes=_ALL),
    Variant("fun-inp-14b", "Wan2.1 Fun 14B InP", _14B, 16, 20, _IMAGE, defaults=_FUN, takes=_ALL),
    Variant("i2v", "image-to-video with CLIP", None, 16, 20, _IMAGE, takes=_ALL, needs=("image",)),
    Variant(
        "flf2v-14b-720p", "Wan2.1 FLF2V 14B 720P", _14B, 16, 20, _TWO_IMAGES, defaults=_FLF2V, takes=_ENDS, needs=_ENDS
    ),
    Variant("flf2v", "first and last frame", None, 16, 20, _TWO_IMAGES, takes=_ENDS, needs=_ENDS),
    Variant("i2v-2.2", "image-to-video without CLIP", None, 16, 20, takes=_ALL, needs=("image",)),
    Variant("t2v-a14b", "Wan2.2 A14B text-to-video", None, defaults=_T2V_A14B, takes=_CLIP, boundary=0.875, **_TWO),
    Variant(
        "t2v-a14b-4step", "Wan2.2 A14B text-to-video in 4 steps",
        defaults=Defaults(**_FOUR_STEPS, guidance_scale_2=1.0), takes=_CLIP, distilled_steps=4, boundary=0.875, **_TWO,
    ),
    Variant(
        "i2v-a14b", "Wan2.2 A14B image-to-video", None, 16, 20,
        defaults=_I2V_A14B, takes=_ALL, needs=("image",), boundary=0.9, **_TWO,
    ),
    Variant("ti2v-5b", "Wan2.2 TI2V", None, 48, defaults=_TI2V_5B, takes=_FIRST),
    Variant(
        "ti2v-5b-dmd", "Wan2.2 TI2V by DMD", None, 48, takes=_CLIP,
        defaults=replace(_TI2V_5B, steps=3, guidance_scale=1.0, sampler="renoise"), distilled_steps=3, levels=_DMD,
    ),
    Variant("vace", "VACE", None, 16, parts=frozenset({"vace_blocks"}), missing="VACE context blocks"),
)  # fmt: skip
BY_NAME = {variant.name: variant for variant in VARIANTS}


def recognise(structure: Structure) -> Variant | None:
    """The first row that fits, or None for a structure that is no known variant."""
    return next((variant for variant in VARIANTS if variant.fits(structure)), None)
