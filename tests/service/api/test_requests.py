"""The bounds of the API are those of the model, whatever name a parameter has."""

import pytest

from service.api import requests
from service.errors import InvalidRequest
from service.settings import ModelCard
from service.triton import INPUTS
from wan.request import LIMITS, MAX_PROMPT_CHARACTERS
from wan.samplers import SAMPLERS

CARD = ModelCard(width=64, height=64, num_frames=17, steps=20, fps=16)


def resolve(**values):
    return requests.parse({"prompt": "x"} | values).resolve(CARD, "wan")


def test_the_bounds_are_the_models():
    published = requests.limits()
    sent = {key for key, _, _ in INPUTS.values()}
    assert {"width", "height", "num_frames", "steps", "seed"} <= sent
    for name in sent & set(LIMITS):
        limit = LIMITS[name]
        assert (published[name]["minimum"], published[name]["maximum"]) == (limit.low, limit.high), name
    assert published["prompt"]["maxLength"] == MAX_PROMPT_CHARACTERS
    assert set(published["sampler"]["enum"]) == set(SAMPLERS)


def test_what_is_left_out_takes_the_models_default():
    values = resolve()
    assert (values["width"], values["steps"], values["fps"]) == (64, 20, 16)
    assert 0 <= values["seed"] < 2**31


@pytest.mark.parametrize(("seconds", "frames"), [(1, 17), (1.0625, 17), (5, 81), (0.1, 1), (4, 65)])
def test_seconds_become_the_longest_clip_that_is_not_longer(seconds, frames):
    assert resolve(seconds=seconds)["num_frames"] == frames


@pytest.mark.parametrize(("field", "value", "nearest"), [("width", 70, 64), ("height", 2049, 2048), ("num_frames", 20, 21)])
def test_a_size_off_the_grid_is_refused_with_the_nearest(field, value, nearest):
    with pytest.raises(InvalidRequest, match=rf"{field} is {value}") as error:
        resolve(**{field: value})
    assert str(nearest) in str(error.value)


def test_a_size_said_twice_is_refused():
    with pytest.raises(InvalidRequest, match="not both|together"):
        resolve(size="64x64", width=64)
    with pytest.raises(InvalidRequest, match="not both"):
        resolve(seconds=1, num_frames=17)


def test_a_key_draws_the_same_seed_again():
    assert requests.stable_seed("a", "k") == requests.stable_seed("a", "k") != requests.stable_seed("b", "k")
