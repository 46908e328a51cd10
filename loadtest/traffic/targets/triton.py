"""Load straight to Triton's ensemble, by gRPC and by HTTP, without jobs, storage and MP4."""

import contextlib
import json
from urllib.parse import urlsplit

import aiohttp
import tritonclient.grpc as grpc_types
import tritonclient.grpc.aio as grpc_client
import tritonclient.http as http_types
import tritonclient.http.aio as http_client
from tritonclient.utils import InferenceServerException

from contract.tensors import infer_inputs
from loadtest.base.inputs import TargetUnavailable
from loadtest.traffic.profile import Order, Target
from loadtest.traffic.record import COMPUTE, Clock, Record


class TritonSender:
    """What gRPC and HTTP share: one unary inference is the whole request."""

    types = grpc_types

    def __init__(self, target: Target, client):
        self.target, self.client = target, client

    async def check(self) -> None:
        try:
            if not await self.client.is_model_ready(self.target.model):
                raise TargetUnavailable(f"{self.target.url}: model {self.target.model!r} is not ready")
        except (InferenceServerException, aiohttp.ClientError, OSError) as error:
            raise TargetUnavailable(f"{self.target.url} does not answer: {error}") from error

    async def send(self, order: Order, record: Record, clock: Clock) -> None:
        inputs = infer_inputs(self.types, order.request)
        try:
            answer = await self.client.infer(self.target.model, inputs)
            record.finished = clock()
            self._read(answer, record)
            record.outcome = "completed"
        except (InferenceServerException, aiohttp.ClientError, OSError, ValueError) as error:
            text = str(error)
            refused = "UNAVAILABLE" in text or "exceeds maximum queue size" in text.lower()
            record.outcome, record.error = ("rejected" if refused else "error"), text[:300]

    async def abandon(self, record: Record) -> None:
        """Nothing to tell: the cancelled call has already closed its stream or connection."""

    def _read(self, answer, record: Record) -> None:
        record.content_bytes = answer.as_numpy("FRAMES").nbytes
        seconds = json.loads(answer.as_numpy("INFO")[0])["seconds"]
        record.stages = {name: float(seconds[name]) for name in COMPUTE if name in seconds}


class GrpcSender(TritonSender):
    """KServe v2 gRPC."""

    @classmethod
    async def open(cls, target: Target, in_flight: int, stack: contextlib.AsyncExitStack) -> "GrpcSender":
        client = grpc_client.InferenceServerClient(urlsplit(target.url).netloc)
        return cls(target, await stack.enter_async_context(client))


class HttpSender(TritonSender):
    """KServe v2 HTTP with binary tensors."""

    types = http_types

    @classmethod
    async def open(cls, target: Target, in_flight: int, stack: contextlib.AsyncExitStack) -> "HttpSender":
        url = urlsplit(target.url)
        client = http_client.InferenceServerClient(
            url.netloc, conn_limit=in_flight, conn_timeout=3600, ssl=url.scheme == "https"
        )
        return cls(target, await stack.enter_async_context(client))
