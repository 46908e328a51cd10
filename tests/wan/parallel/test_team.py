"""A video on several ranks is the video of one: real processes over gloo, through the code that GPUs run."""

import json
import subprocess
import sys

import pytest
import torch

from contract.parallel import Degrees
from tests.conftest import PROJECT_ROOT
from wan.parallel.share import Share


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


def test_adapters_are_beside_the_weights_of_every_rank_and_gone_with_their_request(compared):
    for name, found in compared.items():  # the same request without adapters, after it
        assert (found["adapted"] > 1e-2) == ("adapted" in name)


def test_every_token_is_in_one_share():
    whole = torch.arange(1, 10).view(1, 9, 1)
    parts = [Share(Degrees(1, 4), rank).tokens(whole) for rank in range(4)]
    assert [part.flatten().tolist() for part in parts] == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 0, 0]]
