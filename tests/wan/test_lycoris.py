"""LoHa and LoKr against their definitions, written out in numpy, and beside weights of every kind."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from contract import lora_keys
from contract.adapter_store import AdapterStore
from contract.lora_keys import KOHYA, LYCORIS, LoraError
from tests.wan.adapter_files import FAMILIES, linears, pairs
from tests.wan.reference import relative_error
from wan import adapted, fp8, offload
from wan.checkpoint import weight_shapes
from wan.config import DiTConfig
from wan.dit import WanDiT
from wan.lora import Lora
from wan.optimize import Options, block_linears, optimized

CONFIG = DiTConfig(dim=64, num_layers=3, num_heads=4, ffn_dim=128, text_dim=32, freq_dim=32)
WEIGHTS = weight_shapes(CONFIG)
RANK, FACTOR, ALPHA = 3, 8, 2.0
CLOSE = 1e-4


def loha(out: int, width: int, draw) -> dict:
    return {
        f"hada_w{i}_{side}": draw(*shape) for i in (1, 2) for side, shape in (("a", (out, RANK)), ("b", (RANK, width)))
    }


def lokr(out: int, width: int, draw) -> dict:
    """With a full second factor."""
    return {"lokr_w1": draw(FACTOR, FACTOR), "lokr_w2": draw(out // FACTOR, width // FACTOR)}


def lokr_of_products(out: int, width: int, draw) -> dict:
    first = {"lokr_w1_a": draw(FACTOR, RANK + 1), "lokr_w1_b": draw(RANK + 1, FACTOR)}
    return first | {"lokr_w2_a": draw(out // FACTOR, RANK), "lokr_w2_b": draw(RANK, width // FACTOR)}


KINDS = {"LoHa": loha, "LoKr": lokr, "LoKr of products": lokr_of_products}
# LyCORIS scales by alpha over the rank of the second factor; a LoKr of two full factors is not scaled
SCALES = {"LoHa": ALPHA / RANK, "LoKr": 1.0, "LoKr of products": ALPHA / RANK}


def file(kind: str, seed: int = 0, name=LYCORIS, only: str = "blocks.", size: float = 0.3) -> dict:
    """An adapter of all linear layers in the blocks, by names with underscores after a prefix, or with dots."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for module in linears(WEIGHTS, only):
        made = KINDS[kind](*WEIGHTS[module + ".weight"], lambda *shape: size * torch.randn(shape, generator=generator))
        key = name + (module.replace(".", "_") if name.endswith("_") else module)
        tensors |= {f"{key}.{role}": tensor for role, tensor in made.items()} | {f"{key}.alpha": torch.tensor(ALPHA)}
    return tensors


def by_definition(kind: str, tensors: dict, key: str) -> np.ndarray:
    """The difference of one weight, element by element."""
    of = {k.rpartition(".")[2]: v.double().numpy() for k, v in tensors.items() if k.startswith(key + ".")}
    if kind == "LoHa":
        return SCALES[kind] * (of["hada_w1_a"] @ of["hada_w1_b"]) * (of["hada_w2_a"] @ of["hada_w2_b"])
    first = of["lokr_w1"] if "lokr_w1" in of else of["lokr_w1_a"] @ of["lokr_w1_b"]
    second = of["lokr_w2"] if "lokr_w2" in of else of["lokr_w2_a"] @ of["lokr_w2_b"]
    (a, b), (c, d) = first.shape, second.shape
    return SCALES[kind] * np.array(
        [[first[i // c, j // d] * second[i % c, j % d] for j in range(b * d)] for i in range(a * c)]
    )


def lora(tensors: dict, **more) -> Lora:
    return Lora("test", tensors, WEIGHTS, **more)


@pytest.fixture(scope="module")
def dit():
    torch.manual_seed(0)
    dit = WanDiT(CONFIG).eval().requires_grad_(False)
    for parameter in dit.parameters():
        parameter += 0.05 * torch.randn(parameter.shape)
    return dit


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(1, 16, 2, 8, 8, generator=generator),
        torch.tensor([700.0]),
        torch.randn(1, 16, 32, generator=generator),
    )


@torch.inference_mode()
def answer(dit, inputs, adapters=()) -> torch.Tensor:
    with adapted.applied(dit, adapters):
        return dit(*inputs)


def merged(dit, adapters) -> WanDiT:
    other = copy.deepcopy(dit)
    for name, parameter in other.named_parameters():
        for each, strength in adapters:
            parameter.copy_(each.add_to(name, parameter, strength))
    return other


@pytest.mark.parametrize("name", [LYCORIS, KOHYA, "diffusion_model."])
@pytest.mark.parametrize("kind", KINDS)
def test_merging_adds_what_the_definition_says(kind, name):
    tensors, module = file(kind, name=name, only="blocks.1."), "blocks.1.ffn.0"
    key = name + (module.replace(".", "_") if name.endswith("_") else module)
    expected = torch.from_numpy(by_definition(kind, tensors, key)).float()
    found = lora(tensors).add_to(f"{module}.weight", torch.zeros(WEIGHTS[module + ".weight"]), 0.5)
    assert relative_error(found, 0.5 * expected) < 1e-6
    assert lora(tensors).parameters == {f"{m}.weight" for m in linears(WEIGHTS, "blocks.1.")}


@pytest.mark.parametrize("linear", ["onednn", "dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_beside_the_weights_equals_merged(dit, inputs, kind, linear):
    adapters = [(lora(file(kind)), 0.7)]
    expected = answer(merged(dit, adapters), inputs)
    served = optimized(copy.deepcopy(dit), Options(linear=linear))
    before = answer(served, inputs)
    assert relative_error(answer(served, inputs, adapters), expected) < CLOSE
    assert relative_error(expected, before) > 100 * CLOSE
    assert torch.equal(answer(served, inputs), before)


def test_all_kinds_at_once_also_where_only_some_blocks_have_them_and_the_blocks_come_from_the_host(dit, inputs):
    files = [
        FAMILIES["LightX2V"](pairs(WEIGHTS, 5)), file("LoHa", 1), file("LoKr", 2, only="blocks.1."),
        file("LoKr of products", 3, only="blocks.2.ffn"),
    ]  # fmt: skip
    adapters = list(zip(map(lora, files), (1.0, -0.5, 0.8, 0.6), strict=True))
    served = optimized(copy.deepcopy(dit))
    found = answer(served, inputs, adapters)
    assert relative_error(found, answer(merged(dit, adapters), inputs)) < CLOSE
    offload.stream([served], 2)
    assert torch.equal(answer(served, inputs, adapters), found)


@pytest.mark.parametrize("kind", KINDS)
def test_beside_fp8_the_base_is_the_same_and_the_difference_exact(dit, kind):
    base, module = copy.deepcopy(dit), "blocks.0.ffn.0"
    fp8.swap_linears(base, block_linears(base))
    optimized(base)
    tensors = file(kind)
    expected = torch.from_numpy(by_definition(kind, tensors, LYCORIS + module.replace(".", "_"))).float()
    layer, x = base.get_submodule(module), torch.randn(1, 5, 64)
    with torch.inference_mode(), adapted.applied(base, [(lora(tensors), 2.0)]):
        wide = base.get_submodule(module)
        assert wide.base is layer
        assert relative_error(wide(x) - layer(x), 2 * x @ expected.T) < CLOSE


def test_compiled_blocks_are_not_built_again_for_another_lokr_of_the_size(dit, inputs):
    base = optimized(copy.deepcopy(dit))
    torch._dynamo.reset()
    for block in base.blocks:
        block.compile(backend="eager", dynamic=False)
    some, others = ([(lora(file("LoKr", seed, only=only)), 1.0)] for seed, only in ((1, "blocks."), (2, "blocks.1.")))
    assert relative_error(answer(base, inputs, some), answer(dit, inputs, some)) < CLOSE
    with torch.compiler.set_stance("fail_on_recompile"):
        assert (
            relative_error(answer(base, inputs, [(some[0][0], -1.0)]), answer(dit, inputs, [(some[0][0], -1.0)]))
            < CLOSE
        )
    assert relative_error(answer(base, inputs, others), answer(dit, inputs, others)) < CLOSE


@pytest.mark.parametrize(("kind", "rank"), [("LoHa", 9), ("LoKr", 16), ("LoKr of products", 8)])
def test_the_price_is_that_of_the_lora_that_costs_as_much(kind, rank):
    shapes = {key: tuple(tensor.shape) for key, tensor in file(kind).items()}
    assert lora_keys.rank(lora_keys.matched("test", shapes, WEIGHTS), shapes) == rank


def test_a_configuration_of_peft_for_them_is_refused_as_its_alpha_is_not_in_the_file():
    with pytest.raises(LoraError, match="uses peft_type = LOKR, of which LORA alone is supported"):
        lora(file("LoKr"), config='{"peft_type": "LOKR", "alpha": 8, "r": 4}')


@pytest.mark.parametrize(("rank", "fits"), [(22, True), (23, False)])
def test_a_loha_too_large_for_requests_is_refused_where_it_is_registered(rank, fits, tmp_path):
    """Beside the weights it takes the memory of a LoRA of its ranks' product."""
    out, width = WEIGHTS["blocks.0.ffn.0.weight"]
    shapes = {"a": (out, rank), "b": (rank, width)}
    tensors = {f"blocks.0.ffn.0.hada_w{i}_{side}": torch.ones(shape) for i in (1, 2) for side, shape in shapes.items()}
    save_file(tensors, tmp_path / "loha.safetensors")
    store = AdapterStore(str(tmp_path))
    if fits:
        assert store.examine("loha.safetensors", WEIGHTS).rank == rank * rank
        return
    with pytest.raises(LoraError, match=r"ffn.0 is a LoHa of the ranks 23 and 23, 529 as a LoRA; allowed .* up to 512"):
        store.examine("loha.safetensors", WEIGHTS)
