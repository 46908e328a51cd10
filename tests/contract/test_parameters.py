import pytest

from contract import Defaults, InvalidRequest, ModelCard

CARD = ModelCard(defaults=Defaults(width=64, height=64, num_frames=17, steps=20))


def test_what_is_not_given_takes_the_checkpoints_default():
    request = CARD.request(prompt="a cat", steps=None, width=32)
    assert (request.width, request.height, request.steps, request.sampler) == (32, 64, 20, "unipc")


def test_an_absent_seed_is_drawn_and_differs():
    seeds = {CARD.request(prompt="a cat").seed for _ in range(8)}
    assert len(seeds) == 8


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("width", 65, "a multiple of 16, 16 to 2048"),
        ("height", 0, "a multiple of 16, 16 to 2048"),
        ("width", 4096, "16 to 2048"),
        ("width", 64.5, "an integer"),
        ("num_frames", 16, r"4n \+ 1"),
        ("num_frames", -3, r"4n \+ 1, 1 to 257"),
        ("steps", 0, "1 to 1000"),
        ("steps", True, "an integer"),
        ("steps", "20", "an integer"),
        ("guidance_scale", 0.5, "1 to 30"),
        ("guidance_scale", float("nan"), "a finite number"),
        ("flow_shift", float("inf"), "a finite number"),
        ("flow_shift", 0, "0.1 to 30"),
        ("seed", -1, "0 to 9223372036854775807"),
        ("seed", 2**63, "0 to 9223372036854775807"),
        ("cache_threshold", -0.1, "0 to 10"),
        ("sampler", "ddim", r"unipc, euler, dpm\+\+"),
        ("negative_prompt", 7, "text of at most"),
        ("fps", 16, "one of the parameters"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name_value_and_bounds(field, value, allowed):
    with pytest.raises(InvalidRequest, match=allowed) as caught:
        CARD.request(prompt="a cat", **{field: value})
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field} is {value!r}")


@pytest.mark.parametrize("prompt", ["", "  \n\t", "x" * 8001])
def test_an_empty_or_endless_prompt_is_refused(prompt):
    with pytest.raises(InvalidRequest) as caught:
        CARD.request(prompt=prompt)
    assert caught.value.field == "prompt"
    assert len(str(caught.value)) < 200


def test_an_empty_negative_prompt_is_allowed():
    assert CARD.request(prompt="a cat", negative_prompt="").negative_prompt == ""
