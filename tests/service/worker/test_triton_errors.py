"""What a client of Triton is told when the connection or a stage breaks; without a model, so without Triton."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest
from tritonclient.utils import InferenceServerException

from service.errors import (
    CheckpointRefused,
    Fault,
    GenerationCancelled,
    GenerationFailed,
    GenerationRejected,
    ServerStopped,
    StageHung,
)
from service.worker.triton import TritonGenerator, _translated

# A gRPC server that takes a request and never answers it.
SERVER = """
import time
from concurrent import futures
import grpc

class Silent(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: print("called", flush=True) or time.sleep(60))

server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Silent()])
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
"""


def test_a_server_that_is_killed_is_named_as_such_and_not_by_its_socket():
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    port = int(process.stdout.readline())

    async def call():
        generator = TritonGenerator(f"127.0.0.1:{port}")
        request = asyncio.create_task(generator.generate("id", {"prompt": "x"}))
        await asyncio.to_thread(process.stdout.readline)
        os.kill(process.pid, signal.SIGKILL)
        try:
            await request
        finally:
            await generator.close()

    try:
        with pytest.raises(ServerStopped, match="the inference server stopped while computing this video") as stopped:
            asyncio.run(call())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert stopped.value.code == "worker_lost"
    assert "ocket" not in str(stopped.value)


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        ("UNKNOWN", "Stream removed (Socket closed)", ServerStopped),
        ("UNAVAILABLE", "failed to connect to all addresses", ServerStopped),
        ("INTERNAL", "Received RST_STREAM with error code 2", ServerStopped),
        ("INTERNAL", "Stub process 'denoise_0_0' is not healthy.", StageHung),
        ("INVALID_ARGUMENT", "[wan:checkpoint_refused] it cannot be read", CheckpointRefused),
        ("INVALID_ARGUMENT", "WIDTH is 17", GenerationRejected),
        ("CANCELLED", "stopped before step 3", GenerationCancelled),
        ("INTERNAL", "out of memory", GenerationFailed),
    ],
)
def test_each_failure_has_its_own_class(status, message, kind):
    assert type(_translated(InferenceServerException(message, f"StatusCode.{status}"))) is kind


def test_what_broke_and_on_which_gpu_is_read_from_the_tag_and_not_shown():
    message = "in ensemble 'wan', [wan:device_error GPU-12ab-34] RuntimeError: an illegal memory access"
    error = _translated(InferenceServerException(message, "StatusCode.INTERNAL"))
    assert (error.code, error.gpu, error.fault) == ("device_error", "GPU-12ab-34", Fault.worker)
    assert str(error) == "in ensemble 'wan', RuntimeError: an illegal memory access (INTERNAL)"
