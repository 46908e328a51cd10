import numpy as np
import pytest

from contract import Defaults, ModelCard
from stages import inputs
from tests.stages.requests import Request, text
from wan.errors import InvalidRequest

CARD = ModelCard(defaults=Defaults(width=64, height=64, num_frames=17, steps=20, negative_prompt="blurred"))


def test_a_request_takes_what_is_given_and_the_defaults_for_the_rest():
    tensors = {"PROMPT": text("红色"), "WIDTH": np.array([96], np.int32), "FLOW_SHIFT": np.array([2.5], np.float32)}
    request, drawn = inputs.generation_request(Request(tensors), CARD)
    assert (request.prompt, request.negative_prompt, request.width, request.height) == ("红色", "blurred", 96, 64)
    assert request.flow_shift == 2.5
    assert drawn


def test_a_given_seed_is_not_drawn():
    tensors = {"PROMPT": text("x"), "SEED": np.array([2**63 - 1], np.int64)}
    request, drawn = inputs.generation_request(Request(tensors), CARD)
    assert request.seed == 2**63 - 1
    assert not drawn


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "PROMPT is None; allowed: UTF-8 text"),
        ({"PROMPT": text(b"ab\xff")}, r"PROMPT is b'ab\\xff'; allowed: UTF-8 text \(byte 2 is 0xff\)"),
        ({"PROMPT": text("a", "b")}, r"PROMPT is 'object \[2\]'; allowed: one STRING value, shape \[1\]"),
        (
            {"PROMPT": text("x"), "WIDTH": np.array([17], np.int32)},
            "WIDTH is 17; allowed: a multiple of 16, 16 to 2048",
        ),
        ({"PROMPT": text("x"), "WIDTH": np.array([64], np.int64)}, r"WIDTH is 'int64 \[1\]'; allowed: one INT32 value"),
        ({"PROMPT": text("x"), "STEPS": np.array(3, np.int32)}, r"STEPS is 'int32 \[\]'; allowed: one INT32 value"),
        (
            {"PROMPT": text("x"), "FLOW_SHIFT": np.array([np.nan], np.float32)},
            "FLOW_SHIFT is nan; allowed: a finite number",
        ),
        ({"PROMPT": text("x"), "SAMPLER": text("ddim")}, "SAMPLER is 'ddim'; allowed: unipc, euler"),
        ({"PROMPT": text("x"), "CACHE": text("deepcache")}, "CACHE is 'deepcache'; allowed: teacache, magcache"),
        (
            {"PROMPT": text("x"), "GUIDANCE_END": np.array([1.5], np.float32)},
            "GUIDANCE_END is 1.5; allowed: 0 to 1",
        ),
    ],
)
def test_a_bad_tensor_is_named_with_its_value_and_what_is_allowed(tensors, message):
    with pytest.raises(InvalidRequest, match=message):
        inputs.generation_request(Request(tensors), CARD)


def test_a_32_bit_number_means_the_decimal_that_was_written():
    tensors = {"PROMPT": text("x"), "GUIDANCE_END": np.array([0.1], np.float32), "CACHE": text("magcache")}
    request, _ = inputs.generation_request(Request(tensors), CARD)
    assert (request.guidance_end, request.cache) == (0.1, "magcache")


def test_an_array_is_checked_for_presence_type_shape_and_finite_numbers():
    latents = np.zeros((16, 2, 8, 8), np.float32)
    dims = (16, -1, -1, -1)
    assert inputs.array(Request({"LATENTS": latents}), "LATENTS", "FP32", dims) is latents
    bad = {
        "None; allowed: FP32": Request({}),
        r"float64 \[16, 2, 8, 8\]": Request({"LATENTS": latents.astype(np.float64)}),
        r"float32 \[15, 2, 8, 8\]": Request({"LATENTS": latents[:15]}),
        r"float32 \[16, 0, 8, 8\]": Request({"LATENTS": latents[:, :0]}),
        r"float32 \[16, 8, 8\]": Request({"LATENTS": latents[:, 0]}),
        "NaN or infinity": Request({"LATENTS": np.full_like(latents, np.inf)}),
    }
    for message, request in bad.items():
        with pytest.raises(InvalidRequest, match=f"LATENTS is '?{message}"):
            inputs.array(request, "LATENTS", "FP32", dims)


def test_a_flag_is_a_boolean_request_parameter():
    assert inputs.flag(Request({}, values={"preview": True}), "preview")
    assert not inputs.flag(Request({}), "preview")
    with pytest.raises(InvalidRequest, match="parameter preview is 'yes'; allowed: true or false"):
        inputs.flag(Request({}, values={"preview": "yes"}), "preview")


@pytest.mark.parametrize("text", ["", "[]", "7", "nul", "[" * 100_000, '{"a":' * 100_000, "1" * 5000, " " * (2 << 20)])
def test_what_is_no_json_object_is_refused_however_deep_or_long(text):
    with pytest.raises(InvalidRequest, match="INFO is .*; allowed: the INFO of a stage"):
        inputs.json_object("INFO", text, "the INFO of a stage")


def test_a_shape_is_refused_before_its_values_are_looked_at():
    def refuse(shape):
        raise InvalidRequest("LATENTS", shape, "smaller")

    latents = np.full((16, 2, 8, 8), np.nan, np.float32)
    with pytest.raises(InvalidRequest, match="allowed: smaller"):
        inputs.array(Request({"LATENTS": latents}), "LATENTS", "FP32", (16, -1, -1, -1), refuse)
