"""A video on several ranks is the video of one: real processes over gloo, through the code that GPUs run."""

import json
import subprocess
import sys

import pytest
import torch

from tests.conftest import PROJECT_ROOT
from wan.config import DiTConfig
from wan.errors import InvalidRequest
from wan.parallel.share import Degrees, Share


@pytest.fixture(scope="module")
def compared() -> dict[str, dict]:
    command = [sys.executable, "-m", "tests.wan.parallel.ranks"]
    answer = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=280)
    assert answer.returncode == 0, answer.stderr[-3000:]
    return {found["name"]: found for found in map(json.loads, answer.stdout.splitlines())}


def test_every_division_gives_what_one_rank_gives(compared):
    assert {name: found["difference"] for name, found in compared.items() if found["difference"] > 1e-5} == {}
    assert sum(found["tokens"] % 2 for found in compared.values()) >= 4  # padded


def test_a_run_is_repeated_bit_by_bit_and_goes_on_with_another_number_of_ranks(compared):
    assert all(found["repeats"] for found in compared.values())
    assert {
        name: found["continued_on_one"] for name, found in compared.items() if found["continued_on_one"] > 1e-5
    } == {}


def test_what_ranks_skip_and_leave_idle_is_decided_once(compared):
    assert compared["two experts, cached"]["skipped"] > 0
    assert set(compared["12 heads, guided at first"]["branches"]) == {1, 2}


@pytest.mark.parametrize("text", ["cfg2", "ulysses4", "cfg2xulysses4", "ulysses12"])
def test_degrees_are_written_as_they_are_read(text):
    assert str(Degrees.parse(text)) == text


@pytest.mark.parametrize("text", ["", "cfg3", "ulysses", "ulysses1", "ulysses0", "cfg2ulysses2", "xulysses2", "cfg2x"])
def test_degrees_that_mean_nothing_are_refused(text):
    with pytest.raises(InvalidRequest, match="parallel is .*; allowed: cfg2"):
        Degrees.parse(text)


def test_a_number_of_ranks_that_does_not_divide_the_heads_is_refused():
    config = DiTConfig(dim=1536, ffn_dim=64, num_heads=12, num_layers=1)
    Degrees.parse("cfg2xulysses4").check(config)
    with pytest.raises(InvalidRequest, match="ulysses8.*1, 2, 3, 4, 6, 12"):
        Degrees.parse("ulysses8").check(config)


def test_every_token_is_in_one_share():
    whole = torch.arange(1, 10).view(1, 9, 1)
    parts = [Share(Degrees(1, 4), rank).tokens(whole) for rank in range(4)]
    assert [part.flatten().tolist() for part in parts] == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 0, 0]]
