"""The seam between the service and Triton: is it ready, how many denoise slots, generate."""

import json
import logging
from typing import Protocol

import grpc
import numpy as np
import tritonclient.grpc.aio as grpcclient
from tritonclient.grpc import KeepAliveOptions
from tritonclient.utils import InferenceServerException

from contract import faults, traces
from contract.faults import untagged
from contract.tensors import ENSEMBLE, infer_inputs
from service.errors import (
    CheckpointRefused,
    GenerationCancelled,
    GenerationFailed,
    GenerationRejected,
    ServerStopped,
    StageHung,
)

logger = logging.getLogger(__name__)
UNHEALTHY = "is not healthy"  # Triton's words for a Python stage that hangs; it says so to every later request too
TRANSPORT = ("UNAVAILABLE", "UNKNOWN")  # set by gRPC when the connection breaks; stages and Triton use others


class Generator(Protocol):
    """What the worker needs of Triton."""

    async def ready(self) -> bool: ...

    async def slots(self) -> int: ...

    async def generate(
        self, request_id: str, request: dict, preview: bool = False, media: dict[str, bytes] | None = None
    ) -> tuple[np.ndarray, dict]: ...

    async def close(self) -> None: ...


class TritonGenerator:
    """Calls the ensemble over gRPC; frames are uint8 [T, H, W, 3].

    Keepalive pings every minute: proxies cut connections that are silent for the minutes a video takes.
    Message sizes are unlimited (2 GB): 81 frames of 720p are 224 MB.
    """

    def __init__(self, url: str):
        self.url = url
        keepalive = KeepAliveOptions(
            keepalive_time_ms=60_000, keepalive_timeout_ms=20_000, keepalive_permit_without_calls=False
        )
        self._client = grpcclient.InferenceServerClient(url, keepalive_options=keepalive)

    async def ready(self) -> bool:
        """Whether the server answers and the ensemble with all its stages is loaded."""
        try:
            return await self._client.is_model_ready(ENSEMBLE, client_timeout=5)
        except (InferenceServerException, grpc.RpcError):
            return False

    async def slots(self) -> int:
        """How many requests the denoise stage runs at once."""
        answer = await self._client.get_model_config("denoise", as_json=True, client_timeout=5)
        groups = answer["config"].get("instance_group", [])
        count = sum(int(group.get("count", 1)) * max(1, len(group.get("gpus", []))) for group in groups)
        return max(1, count)

    async def generate(
        self, request_id: str, request: dict, preview: bool = False, media: dict[str, bytes] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Run one request; GenerationRejected, GenerationCancelled or GenerationFailed when there is no video."""
        inputs = infer_inputs(grpcclient, request, media)
        outputs = [grpcclient.InferRequestedOutput("FRAMES"), grpcclient.InferRequestedOutput("INFO")]
        parameters: dict = {"preview": True} if preview else {}
        if request.get("stream"):
            parameters["stream"] = True
        if (above := traces.traceparent()) is not None:
            parameters[traces.PARAMETER] = above
        try:
            result = await self._client.infer(
                ENSEMBLE, inputs, request_id=request_id, outputs=outputs, parameters=parameters or None
            )
        except InferenceServerException as error:
            raise _translated(error) from error
        return result.as_numpy("FRAMES"), json.loads(result.as_numpy("INFO")[0])

    async def close(self) -> None:
        await self._client.close()


def _translated(error: InferenceServerException) -> Exception:
    """The one place that reads statuses and texts of Triton and gRPC."""
    message = str(error.message())[:1000]
    status = str(error.status()).removeprefix("StatusCode.")
    if status == "CANCELLED":
        return GenerationCancelled(message)
    if status in TRANSPORT or "RST_STREAM" in message:
        logger.warning("the connection to Triton broke", extra={"reason": f"{message} ({status})"})
        return ServerStopped(
            "the inference server stopped while computing this video; if that happens again, it may lack the memory for it: "
            "ask for a smaller size or fewer frames"
        )
    code, gpu, message = untagged(message)
    if code == faults.CHECKPOINT_REFUSED:
        return CheckpointRefused(f"{message} ({status})")
    if UNHEALTHY in message:
        return StageHung(f"{message} ({status})")
    if status == "INVALID_ARGUMENT" and code is None:
        return GenerationRejected(message)
    return GenerationFailed(f"{message} ({status})", code, gpu)
