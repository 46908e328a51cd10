"""`python -m export.residency`: where the weights of the published models lie, by the memory of a workstation's GPU.

No checkpoint is needed; the export of one decides by the same function. `docs/memory.md` shows it.
"""

from dataclasses import dataclass
from functools import cache
from math import prod

from contract.variants import BY_NAME
from export import memory
from export.dit import package
from export.dit.precision import Precision
from export.dit.random_checkpoint import MODELS, official_clip, shapes_of
from export.inputs import encoders
from export.memory import DitBytes, Video
from export.placement import GIB, PlacementError
from export.workstation import Fit, Needs, Networks, fit
from wan.checkpoint import weight_shapes
from wan.config import TextConfig
from wan.fp8 import NATIVE_CAPABILITY
from wan.sizes import build_umt5
from wan.vae22 import build_vae

# MiB that nvidia-smi says of an RTX 4090, an L40S, an H100 and an H200, by the GB that they are sold as
GPUS = {24: 24564, 48: 46068, 80: 81559, 141: 143771}
SHOWN = ("t2v-1.3b", "t2v-14b", "i2v-14b-480p", "t2v-a14b", "i2v-a14b", "ti2v-5b")
HOST = 128 * GIB


@dataclass(frozen=True)
class Shapes:
    """Weights that are not there: what `package.contents` asks of them."""

    shapes: dict[str, tuple[int, ...]]

    @property
    def names(self) -> list[str]:
        return list(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]


@cache
def text_parameters(config: TextConfig) -> int:
    """How many umT5 has, its embedding once."""
    shapes = shapes_of(lambda: build_umt5(config))
    return sum(prod(shape) for name, shape in shapes.items() if name != "encoder.embed_tokens.weight")


def needs(name: str) -> Needs:
    """Those of a published model for videos of its usual size."""
    model, row, shapes = MODELS[name], BY_NAME[name], Shapes(weight_shapes(MODELS[name].dit))
    vae = sum(map(prod, shapes_of(lambda: build_vae(model.vae)).values()))
    clip = sum(map(prod, official_clip(model.clip).values())) if model.clip else 0
    stages = len(encoders({"takes": row.takes, "image_dim": model.dit.image_dim}))
    networks = Networks(model.dit, model.text, text_parameters(model.text), model.vae, vae, clip, stages)

    def dit(preset: str) -> DitBytes:
        return DitBytes.of([package.contents(shapes, Precision(preset), model.dit.num_layers)] * model.experts)

    video = Video(row.defaults.width, row.defaults.height, row.defaults.num_frames)
    return Needs.of(networks, {"bfloat16": dit("bf16"), "fp8": dit("fp8")}, video)


def words(found: Fit, dit: DitBytes) -> str:
    """A plan as a cell of the table."""
    count = found.blocks_on_device
    if count is None:
        place = "all on the GPU"
    elif count == dit.blocks:
        place = "one expert at a time"
    else:
        place = f"{count} of {dit.blocks} blocks at a time"
    host = f", {dit.on_host(count) / GIB:.0f} GiB on the host" if count else ""
    return f"{found.precision}, {place}{host}{'; text encoder by layers' * found.stream_text_encoder}"


def table() -> str:
    """In Markdown."""
    rows = [["model, its usual video", *(f"{size} GB" for size in GPUS)], ["---"] * (1 + len(GPUS))]
    for name in SHOWN:
        asked, d, cells = needs(name), BY_NAME[name].defaults, []
        for mib in GPUS.values():
            try:
                found = fit(asked, mib << 20, NATIVE_CAPABILITY, host=int(memory.HOST_USABLE * HOST))
                cells.append(words(found, asked.dit[found.precision]))
            except PlacementError:
                cells.append("refused")
        rows.append([f"{BY_NAME[name].title}, {d.width}x{d.height}, {d.num_frames} frames", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(table())
