"""The benchmark on small sizes: both sides run, in turn, and agree."""

import json

import pytest

from loadtest.__main__ import main
from loadtest.base.inputs import LoadTestError
from loadtest.bench.cases import ARCHITECTURES, GEOMETRY, Case, dit_flops
from loadtest.bench.compare import Process, compare

SMALL = dict(dim=128, num_layers=1, num_heads=1, ffn_dim=256)


@pytest.mark.parametrize(
    ("name", "size", "tera"),
    [("t2v-14b", (832, 480, 81), 1678), ("t2v-14b", (1280, 720, 81), 6523), ("t2v-1.3b", (832, 480, 81), 283)],
)
def test_operations_of_a_forward_are_those_of_the_published_table(name, size, tera):
    assert dit_flops(ARCHITECTURES[name], GEOMETRY.latent_shape(*size)) / 1e12 == pytest.approx(tera, rel=0.01)


def test_both_sides_of_a_forward_have_the_same_weights_and_result():
    result = compare(Case("small", "dit", shape=(16, 2, 8, 8), architecture=SMALL, threads=1), repeats=1)
    assert result.error < 1e-4
    assert result.ratio == pytest.approx(result.ours_seconds / result.theirs_seconds)
    counted = result.flops_per_second * result.ours_seconds
    assert counted == pytest.approx(dit_flops(SMALL, (16, 2, 8, 8)), rel=0.2)  # and the embeddings
    assert 0 < result.share_of_peak < 1.5


@pytest.mark.slow
def test_the_whole_loop_agrees_with_diffusers_and_is_reported(tmp_path, checkpoint, capsys):
    arguments = [
        "--only",
        "denoise",
        "--repeats",
        "1",
        "--threads",
        "1",
        "--checkpoint",
        str(checkpoint),
        "--out",
        str(tmp_path),
    ]
    assert main(["bench", *arguments]) == 0
    result = json.loads((tmp_path / "bench.json").read_text())["results"][0]
    assert result["error"] < 1e-3
    assert result["ratio"] > 0
    assert "whole denoise" in capsys.readouterr().out


def test_a_side_that_fails_is_an_error_with_its_reason():
    broken = Case("broken", "dit", shape=(16, 1, 4, 4), architecture=SMALL, loading={"attention": "flash3"})
    with pytest.raises(LoadTestError, match="needs a CUDA GPU"), Process("ours", broken):
        pass
