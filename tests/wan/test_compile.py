import os

import pytest
import torch
from torch import nn

from contract import Geometry, ModelCard
from contract.parameters import LOSSLESS
from wan import compile
from wan.compile import CompiledBlocks, keep_in
from wan.config import DiTConfig
from wan.denoise import Conditioning, Denoiser, Expert
from wan.dit import WanDiT
from wan.fusion import blocks
from wan.optimize import Options, optimize


@pytest.fixture
def dit(monkeypatch):
    """Whose blocks add one, or ten where they run compiled; two lengths are compiled for."""
    monkeypatch.setattr(compile, "MAX_LENGTHS", 2)
    small = WanDiT(DiTConfig(dim=16, num_layers=2, num_heads=1, ffn_dim=16, text_dim=8, freq_dim=8))

    class Counting(nn.Module):
        def forward(self, x, modulation, rotary, sources, still):
            return x + 1

        def __call__(self, *arguments):
            return self.forward(*arguments) + 9

    small.blocks = nn.ModuleList([Counting(), Counting()])
    small.engine, small.run_blocks = {"compiled": True}, CompiledBlocks(small)
    return small


def run(dit, length: int) -> float:
    class Nothing:
        sources = ((), ())

    return dit.run_blocks(torch.zeros(1, length, 1), None, None, Nothing).max().item()


def test_lengths_beyond_the_limit_run_uncompiled_and_the_engine_says_so_for_as_long(dit):
    assert [run(dit, length) for length in (5, 6, 5)] == [20, 20, 20]
    assert dit.engine == {"compiled": True}
    assert run(dit, 7) == 2
    assert dit.engine["compiled"] is False
    assert "7 tokens; 2 other lengths are compiled" in dit.engine["eager_because"]
    assert run(dit, 6) == 20
    assert dit.engine == {"compiled": True}


@pytest.mark.parametrize(("linear", "fused"), [("dense", False), ("fp8", True)])
@torch.no_grad()
def test_a_length_is_one_graph_for_each_number_of_branches_and_nothing_breaks_it(linear, fused, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def through_dynamo(module, **options):
        module._compiled_call_impl = torch.compile(module._call_impl, backend=backend, fullgraph=True, dynamic=False)

    monkeypatch.setattr(nn.Module, "compile", through_dynamo)
    torch._dynamo.reset()
    if fused:
        monkeypatch.setattr(blocks, "missing", lambda device: None)
    dit = WanDiT(DiTConfig(dim=96, num_layers=4, num_heads=2, ffn_dim=64, text_dim=32)).eval().requires_grad_(False)
    engine = optimize(dit, Options(linear=linear, attention="sdpa", compile=True))
    assert engine.get("fused", False) == fused
    denoiser = Denoiser((Expert(dit),), Geometry())
    text = torch.randn(512, 32)
    made = []
    for width in (32, 48, 32):
        for guidance in (1.0, 5.0):
            request = ModelCard().request(
                prompt="a", seed=0, width=width, height=32, num_frames=5, steps=2, guidance_scale=guidance, **LOSSLESS
            )
            denoiser.run(Conditioning(text, text), request)
            made.append(len(graphs))
    assert made == [1, 2, 3, 4, 4, 4]  # one block for all four, and nothing again for what was there


def test_what_is_not_said_compiles_on_a_gpu_only(monkeypatch):
    monkeypatch.setattr(compile, "find_spec", lambda name: object())
    assert Options().compiles(torch.device("cuda"))
    assert not Options().compiles(torch.device("cpu"))
    assert not Options(compile=False).compiles(torch.device("cuda"))


def test_compiled_code_of_both_compilers_is_kept_in_one_directory(tmp_path, monkeypatch):
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "/tmp/lost-with-the-pod")
    keep_in(tmp_path / "kept")
    assert {os.environ[n].split("/kept")[0] for n in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")} == {str(tmp_path)}
