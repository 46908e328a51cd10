"""The seam between the service and Triton: is it ready, how many denoise slots, generate."""

import json
import re
from typing import Protocol

import grpc
import numpy as np
import tritonclient.grpc.aio as grpcclient
from tritonclient.grpc import KeepAliveOptions
from tritonclient.utils import InferenceServerException

from service.errors import GenerationCancelled, GenerationFailed, GenerationRejected

ENSEMBLE = "wan_t2v"
# input name -> (request key, Triton type, numpy type)
INPUTS = {
    "PROMPT": ("prompt", "BYTES", np.object_),
    "NEGATIVE_PROMPT": ("negative_prompt", "BYTES", np.object_),
    "WIDTH": ("width", "INT32", np.int32),
    "HEIGHT": ("height", "INT32", np.int32),
    "NUM_FRAMES": ("num_frames", "INT32", np.int32),
    "STEPS": ("steps", "INT32", np.int32),
    "GUIDANCE_SCALE": ("guidance_scale", "FP32", np.float32),
    "FLOW_SHIFT": ("flow_shift", "FP32", np.float32),
    "SEED": ("seed", "INT64", np.int64),
    "SAMPLER": ("sampler", "BYTES", np.object_),
    "CACHE": ("cache", "BYTES", np.object_),
    "CACHE_THRESHOLD": ("cache_threshold", "FP32", np.float32),
    "GUIDANCE_END": ("guidance_end", "FP32", np.float32),
}
# How an error begins about what the stages pass among themselves: the stage before it is at fault, never the caller.
BETWEEN_STAGES = re.compile(
    r"(in ensemble '\w+', )?(REQUEST|DENOISE_INFO|LATENTS|(NEGATIVE_)?(CONTEXT|IDS|MASK|TIMING)) is "
)


class Generator(Protocol):
    """What the worker needs of Triton."""

    async def ready(self) -> bool: ...

    async def slots(self) -> int: ...

    async def generate(self, request_id: str, request: dict, preview: bool = False) -> tuple[np.ndarray, dict]: ...

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

    async def generate(self, request_id: str, request: dict, preview: bool = False) -> tuple[np.ndarray, dict]:
        """Run one request; GenerationRejected, GenerationCancelled or GenerationFailed when there is no video."""
        inputs = []
        for name, (key, datatype, dtype) in INPUTS.items():
            if request.get(key) is None:
                continue
            value = request[key]
            tensor = grpcclient.InferInput(name, [1], datatype)
            tensor.set_data_from_numpy(np.array([value.encode() if isinstance(value, str) else value], dtype=dtype))
            inputs.append(tensor)
        outputs = [grpcclient.InferRequestedOutput("FRAMES"), grpcclient.InferRequestedOutput("INFO")]
        parameters = {"preview": True} if preview else None
        try:
            result = await self._client.infer(
                ENSEMBLE, inputs, request_id=request_id, outputs=outputs, parameters=parameters
            )
        except InferenceServerException as error:
            raise _translated(error) from error
        return result.as_numpy("FRAMES"), json.loads(result.as_numpy("INFO")[0])

    async def close(self) -> None:
        await self._client.close()


def _translated(error: InferenceServerException) -> Exception:
    message = str(error.message())[:1000]
    status = str(error.status())
    if "CANCELLED" in status:
        return GenerationCancelled(message)
    ours = "checkpoint.safetensors" in message or BETWEEN_STAGES.match(message)
    if "INVALID_ARGUMENT" in status and not ours:
        return GenerationRejected(message)
    return GenerationFailed(f"{message} ({status.removeprefix('StatusCode.')})")
