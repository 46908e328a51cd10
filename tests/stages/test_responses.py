import numpy as np
import pytest

from stages.responses import answer
from stages.rundir import CheckpointRefused
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
        (MemoryError(), "INTERNAL"),
    ],
)
def test_an_error_becomes_an_answer_with_its_code_and_message(error, code):
    def handle(request):
        raise error

    (response,) = answer(Backend, ["request"], handle)
    assert response.error.code == code
    assert str(error) in response.error.message


def test_one_bad_request_does_not_spoil_the_others():
    def handle(request):
        if request == "bad":
            raise InvalidRequest("X", request, "good")
        return {"Y": np.ones(2)}

    good, bad, also_good = answer(Backend, ["good", "bad", "good"], handle)
    assert good.outputs["Y"].tolist() == [1, 1] == also_good.outputs["Y"].tolist()
    assert good.error is None
    assert bad.error.code == "INVALID_ARG"
