import math

import pytest
import torch

from wan.magcache import OFFICIAL, MagCacheModel, magnitude_ratio, official


def published_algorithm(ratios, steps, threshold, max_skips, retention):
    """MagCache as its authors describe it, call by call, for one branch."""
    scale = (len(ratios) - 1) / (steps - 1)
    ratios = [ratios[round(i * scale)] for i in range(steps)]
    computed, product, error, skips = [], 1.0, 0.0, 0
    for step in range(steps):
        skip = False
        if step >= int(steps * retention):
            product = product * ratios[step]
            skips = skips + 1
            error = error + abs(1.0 - product)
            if error < threshold and skips <= max_skips:
                skip = True
            else:
                product, error, skips = 1.0, 0.0, 0
        computed.append(not skip)
    return tuple(computed)


def plan(model, steps, threshold):
    return model.plan(torch.zeros(steps, 1), torch.zeros(steps, 6, 1), threshold)


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("threshold", [0.02, 0.06, 0.12, 0.24])
@pytest.mark.parametrize("steps", [20, 40, 50])
def test_skips_are_those_of_the_published_algorithm(name, threshold, steps):
    ratios = [1.0, *((a + b) / 2 for a, b in zip(OFFICIAL[name][::2], OFFICIAL[name][1::2], strict=True))]
    assert plan(official(name), steps, threshold) == published_algorithm(ratios, steps, threshold, 2, 0.2)


def test_official_schedules_cover_fifty_steps():
    for name in OFFICIAL:
        assert len(official(name).ratios) == 50


def test_a_larger_threshold_skips_more_and_never_more_than_allowed_in_a_row():
    model = MagCacheModel((1.0, *(0.99,) * 29), retention=0.1, max_skips=3)
    computed = [sum(plan(model, 30, t)) for t in (0.0, 0.02, 0.1, 10.0)]
    assert computed == sorted(computed, reverse=True)
    assert computed[0] == 30
    longest = max(len(run) for run in "".join("01"[c] for c in plan(model, 30, 10.0)).split("1"))
    assert longest == 3


def test_the_first_step_is_always_computed():
    assert plan(MagCacheModel((1.0, 1.0, 1.0), retention=0.0), 3, 10.0)[0]


def test_magnitude_ratio_is_the_mean_over_tokens():
    previous, residual = torch.ones(1, 2, 4), torch.ones(1, 2, 4)
    residual[0, 1] = 3
    assert math.isclose(magnitude_ratio(residual, previous), 2.0)
