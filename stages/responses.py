"""Runs a stage's handler over Triton's requests and turns its errors into answers, so that no request ends a stage.

`pb_utils` is passed in: the module exists only inside a Python stub.
"""

import logging
from collections.abc import Callable

from stages.run_directory import CheckpointRefused
from wan.errors import Cancelled, InvalidRequest

logger = logging.getLogger(__name__)


def answer(pb_utils, requests: list, handle: Callable[[object], dict]) -> list:
    """One response for each request; `handle(request)` returns numpy arrays by output name."""
    return [_answer_one(pb_utils, request, handle) for request in requests]


def _answer_one(pb_utils, request, handle: Callable[[object], dict]):
    try:
        if request.is_cancelled():
            raise Cancelled("cancelled while it waited")
        outputs = handle(request)
    except Exception as error:
        return pb_utils.InferenceResponse(error=triton_error(pb_utils, error))
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, value) for name, value in outputs.items()])


def triton_error(pb_utils, error: Exception):
    """The TritonError for an exception: whose fault it is decides the code."""
    codes = pb_utils.TritonError
    if isinstance(error, InvalidRequest | CheckpointRefused):
        return pb_utils.TritonError(str(error), codes.INVALID_ARG)
    if isinstance(error, Cancelled):
        return pb_utils.TritonError(str(error) or "cancelled", codes.CANCELLED)
    logger.error("request failed", exc_info=error)
    return pb_utils.TritonError(f"{type(error).__name__}: {error}", codes.INTERNAL)
