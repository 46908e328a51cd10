import os

import pytest
import torch
from torch import nn

from wan import compile
from wan.compile import CompiledBlocks, keep_in
from wan.config import DiTConfig
from wan.dit import WanDiT
from wan.optimize import Options


@pytest.fixture
def dit(monkeypatch):
    """Whose blocks add one, or ten where they run compiled; two lengths are compiled for."""
    monkeypatch.setattr(compile, "MAX_LENGTHS", 2)
    small = WanDiT(DiTConfig(dim=16, num_layers=2, num_heads=1, ffn_dim=16, text_dim=8, freq_dim=8))

    class Counting(nn.Module):
        def forward(self, x, modulation, rotary, sources):
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
