"""The bounds of the API are those of the declaration, whatever name a parameter has."""

import pytest

from contract import PARAMETERS, Defaults, ModelCard
from contract.parameters import CACHES, SAMPLERS
from contract.tensors import arrays
from service.api import requests
from service.errors import InvalidRequest
from wan import samplers

CARD = ModelCard(defaults=Defaults(width=64, height=64, num_frames=17, steps=20, fps=16))


def resolve(**values):
    return requests.parse({"prompt": "x"} | values).resolve(CARD)


def test_the_bounds_are_the_models():
    published, schema = requests.limits(CARD), requests.VideoRequest.model_json_schema(by_alias=False)["properties"]
    for parameter in PARAMETERS:
        assert parameter.name in schema
        if parameter.name not in CARD.row.unused:
            bounds = parameter.rule.schema(CARD.geometry)
            assert bounds.items() <= published[parameter.name].items()
    assert set(published["sampler"]["enum"]) == set(SAMPLERS) == set(samplers.SAMPLERS)
    assert set(published["cache"]["enum"]) == set(CACHES)


def test_every_parameter_of_the_model_reaches_triton():
    expected = {p.tensor_name for p in PARAMETERS if p.tensor}
    two = ModelCard("t2v-a14b", defaults=Defaults(guidance_scale_2=3.0))
    assert set(arrays(requests.parse({"prompt": "x", "lora": "ink"}).resolve(two, "wan"))) == expected
    assert "LORA" not in arrays(
        requests.parse({"prompt": "x"}).resolve(two, "wan")
    )  # an older ensemble has no such input
    assert set(arrays(resolve())) == expected - {"LORA", *(name.upper() for name in CARD.row.unused)}


def test_a_parameter_of_another_variant_is_refused_by_name():
    with pytest.raises(
        InvalidRequest, match="guidance_scale_2 is 3.0; allowed: nothing, as the served model does not use it"
    ):
        resolve(guidance_scale_2=3.0)


def test_what_is_left_out_takes_the_models_default():
    values = resolve()
    assert (values["width"], values["steps"], values["fps"]) == (64, 20, 16)
    assert (values["cache"], values["cache_threshold"], values["guidance_end"]) == ("teacache", 0.0, 1.0)
    assert 0 <= values["seed"] < 2**31


@pytest.mark.parametrize(("seconds", "frames"), [(1, 17), (1.0625, 17), (5, 81), (0.1, 1), (4, 65)])
def test_seconds_become_the_longest_clip_that_is_not_longer(seconds, frames):
    assert resolve(seconds=seconds)["num_frames"] == frames


def test_lossy_options_are_stored_as_they_were_asked_for():
    asked = {"cache": "magcache", "cache_threshold": 0.1, "guidance_end": 0.75}
    assert asked.items() <= resolve(**asked).items()


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("cache", "deepcache", "'teacache' or 'magcache'"),
        ("guidance_end", 1.5, "less than or equal to 1"),
        ("guidance_end", -0.1, "greater than or equal to 0"),
        ("guidance_end", "later", "a valid number"),
        ("cache_threshold", 11, "less than or equal to 10"),
    ],
)
def test_a_bad_lossy_option_is_named_with_its_value_and_what_is_allowed(field, value, allowed):
    with pytest.raises(InvalidRequest, match=f"{field} is {value!r}; allowed: .*{allowed}"):
        resolve(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "nearest"), [("width", 70, 64), ("height", 2049, 2048), ("num_frames", 20, 21)]
)
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
