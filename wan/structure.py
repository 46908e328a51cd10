"""What the tensors of a DiT say: which variant of the family it is, and what is refused."""

from contract.variants import BY_NAME, Structure, Variant, recognise
from wan.errors import CheckpointError, UnsupportedCheckpoint
from wan.sizes import out_channels
from wan.tensor_files import TensorFiles

# Weights of block-sparse attention, without which such a checkpoint does not compute what it was trained to.
SPARSE = {
    "to_gate_compress": "video sparse attention (VSA, FastVideo)",
    "proj_l.": "sparse-linear attention (SLA, TurboDiffusion)",
}


def refuse_sparse(tensors: TensorFiles) -> None:
    """Raises UnsupportedCheckpoint for a DiT with weights of sparse attention, naming the tensor."""
    for part, what in SPARSE.items():
        if found := next((name for name in sorted(tensors.names) if part in name), None):
            raise UnsupportedCheckpoint(
                f"{tensors.files[0].parent}: tensor {found} belongs to {what}, which is not served"
            )


def check_alike(first: TensorFiles, second: TensorFiles) -> None:
    """Raises CheckpointError for two experts of which one has a tensor that the other lacks or has in another shape."""
    kept = (".weight", ".bias", "modulation", "emb_pos")  # not the scales of FP8 weights
    shapes = [{name: t.shape(name) for name in t.names if name.endswith(kept)} for t in (first, second)]
    for name in sorted({*shapes[0], *shapes[1]}):
        here, there = (list(each.get(name, ())) or "absent" for each in shapes)
        if here != there:
            raise CheckpointError(
                f"{first.files[0].parent} and {second.files[0].parent} are not experts of one model: tensor {name} is "
                f"{here} in the first and {there} in the second"
            )


# Tensors that only a variant with such a sub-network has.
PARTS = {
    "img_emb.proj.0.weight": "img_emb",
    "img_emb.emb_pos": "emb_pos",
    "vace_blocks.0.after_proj.weight": "vace_blocks",
    "control_adapter.conv.weight": "control_adapter",
    "ref_conv.weight": "ref_conv",
    "motion_encoder.dec.direction.weight": "motion_encoder",
}


def structure(tensors: TensorFiles, experts: int = 1) -> Structure:
    """What tells the variants apart, from names and shapes of a DiT's tensors."""
    dim, channels = tensors.shape("patch_embedding.weight")[:2]
    latent_channels = out_channels(tensors)
    return Structure(
        dim=dim,
        num_layers=tensors.count(r"blocks\.(\d+)\."),
        latent_channels=latent_channels,
        condition_channels=channels - latent_channels,
        parts=frozenset(part for name, part in PARTS.items() if name in tensors),
        experts=experts,
    )


def served_variant(tensors: TensorFiles, name: str | None = None, experts: int = 1) -> Variant:
    """The row of the family, `name` deciding between rows that fit alike. Raises UnsupportedCheckpoint."""
    where, found = tensors.files[0].parent, structure(tensors, experts)
    refuse_sparse(tensors)
    variant = recognise(found)
    if name is not None:
        if name not in BY_NAME or not BY_NAME[name].fits(found):
            fitting = [v.name for v in BY_NAME.values() if v.fits(found)]
            raise CheckpointError(
                f"{where}: variant is {name!r}; allowed for these tensors: {', '.join(fitting) or 'none'}"
            )
        variant = BY_NAME[name]
    if variant is None:
        parts = ", ".join(sorted(found.parts)) or "no further parts"
        raise UnsupportedCheckpoint(
            f"{where}: no served variant has {found.latent_channels} latent and {found.condition_channels} further input "
            f"channels, {found.experts} experts and {parts}"
        )
    if variant.missing:
        raise UnsupportedCheckpoint(f"{where}: this is a Wan {variant.title} model; {variant.missing} is not served")
    return variant
