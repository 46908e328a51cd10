"""The family: one row a variant, with what tells it apart, its official sizes and its recommended defaults.

Rows are recognised by the structure of a checkpoint (tensor names and shapes). Sizes: Wan 2.1 report (arXiv:2503.20314)
and the configurations of Wan-Video/Wan2.1; defaults: its README and generate.py.
"""

from dataclasses import dataclass, field

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
    package lacks to serve it; empty: served.
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
_480P, _720P = {"width": 832, "height": 480}, {"width": 1280, "height": 720}
_STEADY = {"negative_prompt": "镜头晃动，" + NEGATIVE_PROMPT, "guidance_scale": 5.0}
_UNCUT = {"negative_prompt": "镜头切换，镜头晃动，" + NEGATIVE_PROMPT, "guidance_scale": 5.0}
_FUN = Defaults(steps=50, sampler="euler", flow_shift=5.0, guidance_scale=6.0)
_FLF2V = Defaults(steps=50, flow_shift=16.0, **_UNCUT, **_720P)

# Of two rows that fit, the first is taken unless a manifest or wan.json names the other.
VARIANTS = (
    Variant("t2v-1.3b", "Wan2.1 T2V 1.3B", _1_3B, defaults=Defaults(guidance_scale=6.0, flow_shift=8.0), takes=_CLIP),
    Variant("t2v-14b", "Wan2.1 T2V 14B", _14B, defaults=Defaults(guidance_scale=5.0, flow_shift=5.0), takes=_CLIP),
    Variant("t2v", "text-to-video", takes=_CLIP),
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
    Variant("t2v-a14b", "Wan2.2 A14B text-to-video", None, experts=2, missing="two experts"),
    Variant("i2v-a14b", "Wan2.2 A14B image-to-video", None, 16, 20, experts=2, missing="two experts"),
    Variant("ti2v-5b", "Wan2.2 TI2V", None, 48, missing="the Wan 2.2 VAE"),
    Variant("vace", "VACE", None, 16, parts=frozenset({"vace_blocks"}), missing="VACE context blocks"),
)  # fmt: skip
BY_NAME = {variant.name: variant for variant in VARIANTS}


def recognise(structure: Structure) -> Variant | None:
    """The first row that fits, or None for a structure that is no known variant."""
    return next((variant for variant in VARIANTS if variant.fits(structure)), None)
