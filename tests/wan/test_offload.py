"""Blocks that come from the host compute what resident ones do, to the bit; a CPU stands for the device and copies at once."""

import contextlib
import copy
from collections import Counter
from itertools import pairwise

import pytest
import torch

from contract import Defaults, ModelCard
from tests.wan.adapter_files import FAMILIES, differences, pairs
from wan import fp8, offload
from wan.checkpoint import weight_shapes
from wan.config import DiTConfig
from wan.denoise import GUIDANCE, Conditioning, Denoiser, Expert, Resume
from wan.dit import WanDiT
from wan.lora import Lora
from wan.optimize import Options, block_linears, optimized

CONFIG = DiTConfig(dim=64, num_layers=5, num_heads=4, ffn_dim=128, text_dim=32, freq_dim=32)
WEIGHTS = weight_shapes(CONFIG)
CARD = ModelCard("t2v-a14b", defaults=Defaults(width=64, height=64, num_frames=5, steps=6, flow_shift=5.0,
                 guidance_scale=4.0, guidance_scale_2=3.0, negative_prompt=""))  # fmt: skip


def _random_dit(seed: int, kind: str) -> WanDiT:
    torch.manual_seed(seed)
    dit = WanDiT(CONFIG).eval().requires_grad_(False)
    for parameter in dit.parameters():
        parameter += 0.05 * torch.randn(parameter.shape)
    if kind == "fp8":
        fp8.swap_linears(dit, block_linears(dit))
    return optimized(dit, Options(linear="auto" if kind == "fp8" else kind))


def _denoiser(dits) -> Denoiser:
    lowest = (875.0, 0.0)[-len(dits) :]
    return Denoiser(
        tuple(Expert(*each) for each in zip(dits, ({},) * 2, lowest, GUIDANCE, strict=False)), CARD.geometry
    )


@pytest.fixture(scope="module")
def given():
    context = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(1))
    context[:, 7:] = 0
    return Conditioning(*context)


def _streamed(dits, on_device: int) -> list[WanDiT]:
    others = copy.deepcopy(dits)
    offload.stream(others, on_device)
    return others


@pytest.mark.parametrize("kind", ["onednn", "dense", "fp8"])
@pytest.mark.parametrize("experts", [1, 2])
def test_streamed_blocks_give_the_bits_of_resident_ones(given, kind, experts):
    dits = [_random_dit(seed, kind) for seed in range(experts)]
    request = CARD.request(prompt="x", seed=1)
    expected, info = _denoiser(dits).run(given, request)
    assert len({step.expert for step in info.plan}) == experts
    for on_device in (2, 3, 5) if kind == "dense" else (3,):
        denoiser = _denoiser(_streamed(dits, on_device))
        for _ in range(2):  # the second begins with what the first has left there
            found, info = denoiser.run(given, request)
            assert torch.equal(found, expected)
        assert info.engine["blocks_on_device"] == f"{on_device} of {5 * experts}"


@pytest.mark.parametrize("kind", ["dense", "fp8"])
def test_adapters_beside_streamed_blocks_too_and_a_resume_on_either_side_of_the_switch(given, kind):
    """Differences in full rank included, which read the weights when the adapter comes."""
    dits = [_random_dit(seed, kind) for seed in range(2)]
    tensors = [FAMILIES["bare"](pairs(WEIGHTS, seed=s, size=0.3)) | differences(WEIGHTS, seed=s) for s in (1, 2)]
    adapters = {"style": [Lora("test", each, WEIGHTS) for each in tensors]}
    request, plain, states = CARD.request(prompt="x", seed=1, lora="style"), CARD.request(prompt="x", seed=1), []
    expected, info = _denoiser(dits).run(given, request, adapters=adapters)
    without = _denoiser(dits).run(given, plain)[0]
    streamed = _denoiser(_streamed(dits, 3))
    assert torch.equal(streamed.run(given, request, adapters=adapters, on_step=states.append)[0], expected)
    switch = [step.expert for step in info.plan].index(1)
    for done in (switch - 1, switch, switch + 1):
        resume = Resume(done, states[done - 1].state)
        assert torch.equal(streamed.run(given, request, adapters=adapters, resume=resume)[0], expected)
    assert torch.equal(streamed.run(given, plain)[0], without)
    assert not torch.equal(without, expected)


def test_a_run_that_ends_in_the_middle_leaves_nothing_wrong(given):
    dit = _random_dit(0, "dense")
    expected = _denoiser([dit]).run(given, CARD.request(prompt="x", seed=1))[0]
    (other,) = _streamed([dit], 2)
    for many in (1, 3, 4):
        for _ in zip(other.blocks, range(many), strict=False):
            pass
        assert torch.equal(_denoiser([other]).run(given, CARD.request(prompt="x", seed=1))[0], expected)


@pytest.mark.parametrize("blocks", [2, 5, 30, 40])
def test_no_block_comes_where_the_one_before_it_still_computes(blocks):
    for on_device in range(2, blocks + 1):
        places = offload.placed(blocks, on_device)
        assert sorted(set(places)) == list(range(on_device))
        streamed = [place for place in places if places.count(place) > 1]
        assert len(streamed) in ((0,) if on_device == blocks else (blocks - on_device + 2, blocks - on_device + 1))
        assert all(a != b for a, b in pairwise(places))
    for wrong in (0, 1, blocks + 1):
        with pytest.raises(ValueError, match=f"{wrong} of {blocks} blocks on the device; allowed: 2 to {blocks}"):
            offload.placed(blocks, wrong)


def test_what_stays_is_copied_once_and_what_moves_once_a_pass(monkeypatch):
    """With the next block on its way while one computes, also across the end of a pass."""
    copied: list = []
    original = offload.Places.bring
    monkeypatch.setattr(offload.Places, "bring", lambda *given: (copied.append(given[1]), original(*given)))
    (dit,) = _streamed([_random_dit(0, "dense")], 3)
    passes = []
    for _ in range(3):
        copied.clear()
        for i, _block in enumerate(dit.blocks):
            assert dit.blocks._is_there(i)
            assert i == 4 or dit.blocks._is_there(i + 1) or dit.blocks._place[i + 1] == dit.blocks._place[i]
        passes.append(len(copied))
    assert passes == [6, 5, 4]  # all and the next pass's first; its second too; then the four that take turns


def test_joined_layers_share_one_memory_on_the_host_and_on_the_device():
    dit = _random_dit(0, "fp8")
    apart = copy.deepcopy(dit)  # a copy of each of its parameters
    for each in (dit, apart):
        offload.stream([each], 2)
    attention = next(iter(dit.blocks)).self_attn
    assert attention.q.weight.data_ptr() == attention.project.joined.weight.data_ptr()
    sizes = [each.blocks._weights[0].memory.nbytes for each in (apart, dit)]
    assert sizes[0] - sizes[1] > 3 * 64 * 64 - 2 * offload.PAGE


def test_compiled_code_is_one_graph_for_all_blocks_experts_and_places(given):
    dits = [_random_dit(seed, "dense") for seed in range(2)]
    expected = _denoiser(dits).run(given, CARD.request(prompt="x", seed=1))[0]
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for dit in dits:
        for block in dit.blocks:
            block._compiled_call_impl = torch.compile(block._call_impl, backend=backend, fullgraph=True, dynamic=False)
    offload.stream(dits, 3)
    assert torch.allclose(_denoiser(dits).run(given, CARD.request(prompt="x", seed=1))[0], expected, atol=1e-5)
    assert len(graphs) == 1


class Line:
    """A stream as far as order goes: what of each stream is done before its next operation."""

    def __init__(self):
        self.before: Counter = Counter()

    def launch(self) -> int:
        self.before[self] += 1
        return self.before[self]

    def wait_event(self, event: "Event") -> None:
        self.before |= event.before


class Event:
    def __init__(self):
        self.before: Counter = Counter()

    def record(self, line: Line) -> None:
        self.before = Counter(line.before)


@pytest.mark.parametrize("on_device", [2, 3, 4, 5])
def test_on_a_gpu_copies_wait_for_what_computes_and_what_computes_for_copies(on_device, monkeypatch):
    """The order that a GPU is told, with streams that only count: it may do everything else at once."""
    dits = _streamed([_random_dit(seed, "dense") for seed in range(2)], on_device)
    places, compute, used, copied = dits[0].blocks._places, Line(), Counter(), Counter()

    class Memory:
        device = torch.device("cuda")

        def __getitem__(self, part):
            return self

        def copy_(self, source, non_blocking):
            assert non_blocking
            assert places._copies.before[compute] >= used[self]
            copied[self] = places._copies.launch()

    places.memory, places.holds = [Memory() for _ in places.memory], [None] * on_device
    places._copies, places._arrived, places._left = Line(), *([Event() for _ in range(on_device)] for _ in range(2))
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: compute)
    overlapped = 0
    for dit in (dits[0], dits[0], dits[1], dits[0]):
        for i, _block in enumerate(dit.blocks):
            memory = places.memory[dit.blocks._place[i]]
            used[memory] = compute.launch()
            assert compute.before[places._copies] >= copied[memory]
            overlapped += compute.before[places._copies] < max(copied.values())
    assert overlapped > 10  # something is copied while most blocks compute
