"""Runs a stage's handler over Triton's requests and turns its errors into answers, so that no request ends a stage.

`pb_utils` is passed in: the module exists only inside a Python stub.
"""

import logging
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from contract import faults, traces
from contract.faults import tagged
from stages import device
from stages.device import NotFinite
from stages.inputs import parameter
from stages.run_directory import CheckpointRefused
from wan.errors import Cancelled, InvalidRequest

logger = logging.getLogger(__name__)
EXIT_DEVICE_ERROR = 71  # exit status of a stage whose GPU is lost to it
ANSWER_SECONDS = 1.0
# What stages pass among themselves: the stage before is at fault, never the caller.
PASSED_ON = frozenset(["REQUEST", "DENOISE_INFO", "LATENTS", "CONTEXT", "IDS", "MASK", "TIMING", "NEGATIVE_CONTEXT", "NEGATIVE_IDS", "NEGATIVE_MASK", "NEGATIVE_TIMING"])  # fmt: skip


def answer(pb_utils, requests: list, handle: Callable[[object], dict], stage: str = "stage") -> list:
    """One response for each request; `handle(request)` returns numpy arrays by output name. `stage` names its spans."""
    return [_answer_one(pb_utils, request, handle, stage) for request in requests]


def _answer_one(pb_utils, request, handle: Callable[[object], dict], stage: str):
    try:
        if request.is_cancelled():
            raise Cancelled("cancelled while it waited")
        with _spanned(request, stage):
            outputs = handle(request)
    except Exception as error:
        return pb_utils.InferenceResponse(error=triton_error(pb_utils, error))
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, value) for name, value in outputs.items()])


def _spanned(request, stage: str) -> AbstractContextManager:
    """A span below the one that the caller named in the request's parameters, if it did."""
    above = parameter(request, traces.PARAMETER, None) if traces.on() else None
    if above is None:
        return nullcontext()
    return traces.span(stage, {"wan.request": request.request_id()}, parent=above, kind="server")


def triton_error(pb_utils, error: Exception):
    """The TritonError for an exception: whose fault it is decides the status, and a tag says what broke."""
    codes = pb_utils.TritonError
    if isinstance(error, Cancelled):
        return pb_utils.TritonError(str(error) or "cancelled", codes.CANCELLED)
    if isinstance(error, InvalidRequest):
        text = tagged(faults.BETWEEN_STAGES, str(error)) if error.field in PASSED_ON else str(error)
        return pb_utils.TritonError(text, codes.INVALID_ARG)
    if isinstance(error, CheckpointRefused):
        return pb_utils.TritonError(tagged(faults.CHECKPOINT_REFUSED, str(error)), codes.INVALID_ARG)
    logger.error("request failed", exc_info=error)
    code = _code(error)
    if code == faults.DEVICE_ERROR:
        _end_soon()
    return pb_utils.TritonError(tagged(code, f"{type(error).__name__}: {error}", device.gpu_uuid()), codes.INTERNAL)


def _code(error: Exception) -> str:
    if isinstance(error, NotFinite):
        return faults.NOT_FINITE
    if device.is_lost():
        return faults.DEVICE_ERROR
    return faults.OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError | MemoryError) else faults.STAGE_BROKE


def _end_soon() -> None:
    """End this process once the answer has left it: whoever supervises the server starts it anew, with a device that answers."""
    timer = threading.Timer(ANSWER_SECONDS, os._exit, (EXIT_DEVICE_ERROR,))
    timer.daemon = True
    timer.start()
