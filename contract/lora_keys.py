"""What the keys of a LoRA file mean, from their names and shapes alone, so that a gateway can judge a file by its header.

Four families of names are read: DiffSynth-Studio (`P.lora_A.default.weight`), Diffusers/PEFT (`transformer.blocks.0.
attn1.to_q.lora_A.weight`), LightX2V/ComfyUI (`diffusion_model.P.lora_down.weight`, with full-rank `.diff`, `.diff_b`,
`.diff_m`) and kohya/musubi (`lora_unet_blocks_0_self_attn_q.lora_down.weight`). LyCORIS's LoKr and LoHa have factors in the
place of a pair (`P.lokr_w1`, `P.hada_w1_a`, also under `lycoris_blocks_0_…`). Every key of a file must be
understood and must fit a tensor of the model; anything else is an error, since a LoRA applied in part looks like a bad LoRA.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from contract.dit_names import dit_from_diffusers
from contract.errors import WanError

Shapes = Mapping[str, tuple[int, ...]]
PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", "transformer_2.", "pipe.dit.", "model.", "unet.")
OF_EXPERT = ("transformer.", "transformer_2.")  # prefixes where Diffusers keeps both experts' keys in one file
KOHYA, LYCORIS = "lora_unet_", "lycoris_"
# A LoHa is (w1_a w1_b) ∘ (w2_a w2_b), a LoKr w1 ⊗ w2, either of which may be a product.
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
MOST_LOHA_RANK = 512
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
# Suffix of a key -> what it is. Longer ones first: ".lora_A" is also the beginning of others.
ROLES = {
    ".lora_A.default.weight": "down", ".lora_B.default.weight": "up", ".lora_B.default.bias": "bias",
    ".lora_A.weight": "down", ".lora_B.weight": "up", ".lora_B.bias": "bias",
    ".lora_down.weight": "down", ".lora_up.weight": "up",
    ".lora.down.weight": "down", ".lora.up.weight": "up",
    "_lora.down.weight": "down", "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",
    ".lora_A": "down", ".lora_B": "up",
    ".alpha": "alpha", ".diff_b": "diff_b", ".diff_m": "diff_m", ".diff": "diff",
} | {f".{factor}": factor for factor in LOHA + LOKR}  # fmt: skip
# Part of a key -> the kind of adapter that it belongs to, which is not read
OTHER_KINDS = {
    "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", ".lokr_t": "LoKr with Tucker's factors", ".oft_": "OFT",
    ".hada_t": "LoHa with Tucker's factors", ".on_input": "IA3",
}  # fmt: skip
TARGETS = {"diff": ".weight", "diff_b": ".bias", "diff_m": ".modulation", "bias": ".bias"}


class LoraError(WanError):
    """A LoRA file is unreadable, or a key in it does not fit the model."""


@dataclass
class Module:
    """The keys of one file about one module: of its low-rank pair or of the factors by which LoHa and LoKr are told, of its
    scale, of differences by the parameter's suffix."""

    down: str | None = None
    up: str | None = None
    alpha: str | None = None
    factors: dict[str, str] = field(default_factory=dict)
    added: dict[str, str] = field(default_factory=dict)


def folded(shapes: Shapes) -> dict[str, list[int]]:
    """A table of shapes where `blocks.*.` stands for as many blocks as the first number says."""
    blocks = 1 + max((int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")), default=-1)
    first = {name.replace("blocks.0.", "blocks.*."): [blocks, *shape] for name, shape in shapes.items()
             if name.startswith("blocks.0.")}  # fmt: skip
    return first | {name: list(shape) for name, shape in shapes.items() if not name.startswith("blocks.")}


def unfolded(table: Mapping[str, list[int]]) -> dict[str, tuple[int, ...]]:
    """The shapes of a table that `folded` made."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (first, *rest) in table.items():
        if "*" in name:
            shapes |= {name.replace("*", str(block)): tuple(rest) for block in range(first)}
        else:
            shapes[name] = (first, *rest)
    return shapes


def matched(source: str, tensors: Shapes, weights: Shapes, expert: int = 0, experts: int = 1) -> dict[str, Module]:
    """What the file `source` says of each module of a model with `weights`; raises LoraError.

    `expert`: for which of a model's `experts` the file is used. One that holds keys of both gives each its own.
    """
    if not tensors:
        raise LoraError(f"{source} holds no tensors")
    names = {name.rpartition(".")[0] for name in weights}
    kohya = {prefix + module.replace(".", "_"): module for module in names for prefix in (KOHYA, LYCORIS)}
    modules: dict[str, Module] = {}
    for key in _of_expert(source, sorted(tensors), expert, experts):
        suffix = next((s for s in ROLES if key.endswith(s)), None)
        kind = next((kind for part, kind in OTHER_KINDS.items() if part in key), None)
        if kind:
            raise LoraError(f"{source}: key {key} is of a {kind} adapter; LoRA, LoHa and LoKr are read")
        if suffix is None:
            raise LoraError(f"{source}: key {key} is of no known kind; known endings: {', '.join(ROLES)}")
        module = _module(key.removesuffix(suffix), kohya)
        if not any(module + leaf in weights for leaf in (".weight", ".bias", ".modulation")):
            raise LoraError(f"{source}: key {key} fits no tensor of the model")
        entry, role = modules.setdefault(module, Module()), ROLES[suffix]
        if role in TARGETS:
            entry.added[TARGETS[role]] = key
        elif role in LOHA + LOKR:
            entry.factors[role] = key
        else:
            setattr(entry, role, key)
    for module, entry in modules.items():
        _check(source, module, entry, tensors, weights)
    return modules


def _of_expert(source: str, keys: list[str], expert: int, experts: int) -> list[str]:
    """The keys that concern this expert."""
    second = [key for key in keys if key.startswith(OF_EXPERT[1])]
    if second and experts == 1:
        raise LoraError(f"{source}: key {second[0]} is for the second expert of Wan 2.2; this model has one")
    if not second or len(second) == len(keys):
        return keys
    return [key for key in keys if key.startswith(OF_EXPERT[expert])]


def _module(module: str, kohya: Mapping[str, str]) -> str:
    """The official name of the module that a key is about."""
    module = kohya.get(module, module)
    for prefix in PREFIXES:
        module = module.removeprefix(prefix)
    return dit_from_diffusers(module + ".").removesuffix(".")


def _check(source: str, module: str, entry: Module, tensors: Shapes, weights: Shapes) -> None:
    if (entry.down is None) != (entry.up is None):
        missing = "up (B)" if entry.up is None else "down (A)"
        raise LoraError(f"{source}: {module} has no {missing} matrix")
    if entry.factors:
        found = {role: tensors[key] for role, key in entry.factors.items()}
        _check_factors(source, module, entry, found, weights.get(module + ".weight", ()))
    elif entry.down is None and entry.alpha is not None:
        raise LoraError(f"{source}: {module} has an alpha but no matrices")
    if entry.down is not None and entry.up is not None:
        _check_pair(source, module, tensors[entry.down], tensors[entry.up], weights.get(module + ".weight", ()))
    for suffix, key in entry.added.items():
        expected = weights.get(module + suffix)
        if expected is None:
            raise LoraError(f"{source}: {module} has a difference for {suffix[1:]}, which the model does not have")
        if math.prod(tensors[key]) != math.prod(expected):
            raise LoraError(
                f"{source}: {module}{suffix} differs by {list(tensors[key])}, the tensor is {list(expected)}"
            )


def _check_pair(source: str, module: str, down: tuple[int, ...], up: tuple[int, ...], weight: tuple[int, ...]) -> None:
    """Also pairs of convolutions, [rank, in, …] and [out, rank, 1, …]."""
    fits = len(down) > 1 and len(up) > 1 and bool(weight) and math.prod(up[1:]) == down[0]
    if not fits or (up[0], math.prod(down[1:])) != (weight[0], math.prod(weight[1:])):
        raise LoraError(f"{source}: {module} is {list(up)} @ {list(down)}, the weight is {list(weight)}")


@dataclass(frozen=True)
class Factors:
    """A LoHa, the product of two matrices element by element, or a LoKr, their Kronecker product.

    `first` and `second` are their shapes, `ranks` those of the products that make them; None: a matrix as it is.
    """

    kron: bool
    first: tuple[int, int]
    second: tuple[int, int]
    ranks: tuple[int | None, int | None]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of what is added to the weight; empty where the two do not fit each other."""
        if self.kron:
            return self.first[0] * self.second[0], self.first[1] * self.second[1]
        return self.first if self.first == self.second else ()

    @property
    def dim(self) -> int | None:
        """What divides alpha, as in LyCORIS; None: nothing is scaled."""
        return (self.ranks[1] or self.ranks[0]) if self.kron else self.ranks[0]

    @property
    def rank(self) -> int:
        """That of a LoRA which costs a forward as much, or more."""
        if self.kron:
            return max(self.first[1], self.ranks[1] or self.second[0])
        return math.prod(rank or 1 for rank in self.ranks)


def factors(found: Shapes) -> Factors | None:
    """The shapes of one module's factors, by role; None where they are no whole LoHa or LoKr."""
    kinds = {role.partition("_")[0] for role in found}
    sides = [_side(found, f"{min(kinds)}_w{number}") for number in (1, 2)]
    if len(kinds) > 1 or sides[0] is None or sides[1] is None:
        return None
    (first, rank), (second, other) = sides[0], sides[1]
    return Factors("lokr" in kinds, first, second, (rank, other))


def _side(found: Shapes, name: str) -> tuple[tuple[int, int], int | None] | None:
    """The shape of a factor and, where it is a product, its rank."""
    whole, a, b = (found.get(name + suffix) for suffix in ("", "_a", "_b"))
    if whole and not a and not b and len(whole) == 2:
        return (whole[0], whole[1]), None
    if a and b and not whole and len(a) == len(b) == 2 and a[1] == b[0]:
        return (a[0], b[1]), a[1]
    return None


def _check_factors(source: str, module: str, entry: Module, found: Shapes, weight: tuple[int, ...]) -> None:
    told = ", ".join(f"{role} {list(shape)}" for role, shape in sorted(found.items()))
    if entry.down is not None:
        raise LoraError(f"{source}: {module} has a low-rank pair beside {told}; one of the two is read")
    made = factors(found)
    if made is None:
        raise LoraError(f"{source}: {module} has {told}, which is no whole LoHa or LoKr")
    if made.shape != weight:
        raise LoraError(f"{source}: {module} has {told}, the weight is {list(weight)}")


def rank(modules: Mapping[str, Module], tensors: Shapes) -> int:
    """The largest rank of a file's pairs, or what factors cost instead; 0 where there are none."""
    ranks = [tensors[entry.down][0] for entry in modules.values() if entry.down is not None]
    told = ({role: tensors[key] for role, key in entry.factors.items()} for entry in modules.values() if entry.factors)
    return max([*ranks, *(made.rank for found in told if (made := factors(found)))], default=0)


def check_beside(source: str, modules: Mapping[str, Module], tensors: Shapes) -> None:
    """Raises LoraError for a LoHa that would take too much memory beside the weights: it does as a LoRA of its ranks' product."""
    for module, entry in modules.items():
        made = factors({role: tensors[key] for role, key in entry.factors.items()}) if entry.factors else None
        if made and not made.kron and made.rank > MOST_LOHA_RANK:
            ranks = " and ".join(str(rank) for rank in made.ranks)
            raise LoraError(
                f"{source}: {module} is a LoHa of the ranks {ranks}, {made.rank} as a LoRA; allowed for requests: up to"
                f" {MOST_LOHA_RANK}, others can be merged at the export (--lora)"
            )


def adapter_alpha(source: str, config: str | None) -> tuple[float, bool] | None:
    """What PEFT's configuration (JSON) says of alpha where no tensor does: its value, and whether the root of the rank divides it.

    Raises LoraError for what it asks for and is not read.
    """
    try:
        values = {key.removeprefix("transformer."): value for key, value in json.loads(config or "{}").items()}
    except (ValueError, AttributeError):
        raise LoraError(f"{source}: the configuration of the adapter is not a JSON object") from None
    if str(values.get("peft_type", "LORA")).upper() != "LORA":
        raise LoraError(
            f"{source}: the adapter uses peft_type = {values['peft_type']}, of which LORA alone is supported"
        )
    if unsupported := [k for k in ("alpha_pattern", "rank_pattern", "use_dora") if values.get(k)]:
        name = unsupported[0]
        raise LoraError(f"{source}: the adapter uses {name} = {values[name]}, which is not supported")
    return (float(values["lora_alpha"]), bool(values.get("use_rslora"))) if "lora_alpha" in values else None
