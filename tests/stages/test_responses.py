import numpy as np
import pytest

from contract.faults import untagged
from stages.device import NotFinite
from stages.responses import answer, triton_error
from stages.run_directory import CheckpointRefused
from tests.stages.requests import Request
from wan.errors import Cancelled, InvalidRequest


class Backend:
    """The part of `triton_python_backend_utils` that answers are made of."""

    class TritonError:
        INVALID_ARG, CANCELLED, INTERNAL = "INVALID_ARG", "CANCELLED", "INTERNAL"

        def __init__(self, message, code):
            self.message, self.code = message, code

    class Tensor:
        def __init__(self, name, array):
            self.name, self.array = name, array

    class InferenceResponse:
        def __init__(self, output_tensors=(), error=None):
            self.outputs, self.error = {t.name: t.array for t in output_tensors}, error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("WIDTH", 17, "a multiple of 16"), "INVALID_ARG"),
        (CheckpointRefused("another fingerprint"), "INVALID_ARG"),
        (Cancelled("cancelled after step 3 of 20"), "CANCELLED"),
        (RuntimeError("out of memory"), "INTERNAL"),
        (NotFinite("the latents are NaN"), "INTERNAL"),
        (MemoryError(), "INTERNAL"),
    ],
)
def test_an_error_becomes_an_answer_with_its_code_and_message(error, code):
    def handle(request):
        raise error

    (response,) = answer(Backend, [Request({})], handle)
    assert response.error.code == code
    assert str(error) in response.error.message


@pytest.mark.parametrize(
    ("error", "tag"),
    [
        (InvalidRequest("LATENTS", "NaN", "finite numbers"), "between_stages"),
        (CheckpointRefused("another fingerprint"), "checkpoint_refused"),
        (NotFinite("the latents are NaN"), "not_finite"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("the stub died"), "stage_broke"),
        (InvalidRequest("WIDTH", 17, "a multiple of 16"), None),
    ],
)
def test_an_error_that_is_not_the_callers_says_what_broke(error, tag):
    assert untagged(triton_error(Backend, error).message)[0] == tag


def test_one_bad_request_does_not_spoil_the_others():
    def handle(request):
        if request.id == "bad":
            raise InvalidRequest("X", request.id, "good")
        return {"Y": np.ones(2)}

    good, bad, also_good = answer(Backend, [Request({}, name) for name in ("good", "bad", "good")], handle)
    assert good.outputs["Y"].tolist() == [1, 1] == also_good.outputs["Y"].tolist()
    assert good.error is None
    assert bad.error.code == "INVALID_ARG"


def test_a_request_whose_caller_is_gone_is_not_begun():
    (response,) = answer(Backend, [Request({}, gone=True)], lambda request: pytest.fail("it was"))
    assert response.error.code == "CANCELLED"
