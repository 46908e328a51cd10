"""Skip patterns against an independent derivation of the published algorithm, call by call."""

import numpy as np
import pytest
import torch

from wan import samplers, teacache
from wan.config import DiTConfig
from wan.dit import WanDiT
from wan.teacache import OFFICIAL, TeaCacheModel, official


def published_algorithm(signal, coefficients, threshold, retention):
    """Both guidance branches in turn with their own state, as in TeaCache4Wan2.1; `signal` has one row a step."""
    steps = len(signal)
    first, last = (10, 2 * steps) if retention else (2, 2 * steps - 2)
    rescale = np.poly1d(coefficients)
    previous, distance, computed = [None, None], [0.0, 0.0], [[], []]
    for call in range(2 * steps):
        branch, current = call % 2, signal[call // 2]
        if call < first or call >= last:
            compute, distance[branch] = True, 0.0
        else:
            change = np.abs(current - previous[branch]).mean() / np.abs(previous[branch]).mean()
            distance[branch] += rescale(change)
            compute = not distance[branch] < threshold
            if compute:
                distance[branch] = 0.0
        previous[branch] = current
        computed[branch].append(compute)
    assert computed[0] == computed[1]
    return tuple(computed[0])


@pytest.fixture(scope="module")
def embeddings():
    """Time embeddings of 50 steps of a model with random weights: (schedule, time [50, C], modulation [50, 6, C])."""
    torch.manual_seed(0)
    dit = WanDiT(DiTConfig(dim=48, num_layers=1, num_heads=1, ffn_dim=16, text_dim=8))
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    schedule = samplers.schedule("unipc", 50, 5.0)
    with torch.no_grad():
        return dit.time_embeddings(schedule.timesteps)


@pytest.mark.parametrize(("name", "retention"), OFFICIAL)
@pytest.mark.parametrize("threshold", [0.05, 0.08, 0.14, 0.2, 0.3])
def test_skips_are_those_of_the_published_algorithm(embeddings, name, retention, threshold):
    time, modulation = embeddings
    signal = (modulation if retention else time).double().flatten(1).numpy()
    expected = published_algorithm(signal, OFFICIAL[name, retention], threshold, retention)
    assert official(name, retention).plan(time, modulation, threshold) == expected


def test_a_larger_threshold_computes_fewer_steps(embeddings):
    model = TeaCacheModel((1.0, 0.0))
    computed = [sum(model.plan(*embeddings, t)) for t in (0.0, 0.1, 0.3, 1.0)]
    assert computed[0] == 50
    assert computed == sorted(computed, reverse=True)
    assert computed[-1] < 40


def test_the_recommended_mode_is_retention_except_for_the_smallest_model():
    assert [official(name).retention for name in ("t2v-1.3b", "t2v-14b", "i2v-14b-480p", "i2v-14b-720p")] == [
        False,
        True,
        True,
        True,
    ]


def test_fit_finds_the_polynomial_behind_the_points():
    true = (3.0, -2.0, 0.5, 0.1, 0.02)
    x = [0.01 * i for i in range(60)]
    found = teacache.fit(x, [teacache.polynomial(true, v) for v in x])
    assert found == pytest.approx(true, abs=1e-6)
