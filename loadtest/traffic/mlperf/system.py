"""The two systems under test: the service with its jobs, and the bare ensemble behind gRPC."""

import json
import threading
from typing import Protocol

import httpx
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from contract.tensors import ENSEMBLE, infer_inputs
from loadtest.base.inputs import TargetUnavailable

HOUR = 3600.0


class System(Protocol):
    """Makes one video; called from several threads. `suffix`: of the file that `make` returns the bytes of."""

    suffix: str

    def check(self) -> None: ...

    def make(self, request: dict) -> bytes: ...


class Service:
    """`POST /v1/videos/sync`: queue, worker, model, MP4 and download are all in the latency."""

    suffix = "mp4"

    def __init__(self, url: str, key: str | None = None):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url, self._client = url, httpx.Client(base_url=url, headers=headers, timeout=HOUR)

    def check(self) -> None:
        try:
            self._client.get("/v1/models").raise_for_status()
        except httpx.HTTPError as error:
            raise TargetUnavailable(f"{self.url} does not answer: {error}") from error

    def make(self, request: dict) -> bytes:
        return self._client.post("/v1/videos/sync", json=request).raise_for_status().content


class Ensemble:
    """The ensemble over gRPC: frames, no jobs and no MP4."""

    suffix = "rgb"

    def __init__(self, address: str):
        self.address, self._own = address, threading.local()

    @property
    def _client(self) -> triton.InferenceServerClient:
        """One of each thread: the client is not made for several."""
        if not hasattr(self._own, "client"):
            self._own.client = triton.InferenceServerClient(self.address)
        return self._own.client

    def check(self) -> None:
        try:
            if not self._client.is_model_ready(ENSEMBLE):
                raise TargetUnavailable(f"{self.address}: model {ENSEMBLE!r} is not ready")
        except InferenceServerException as error:
            raise TargetUnavailable(f"{self.address} does not answer: {error}") from error

    def make(self, request: dict) -> bytes:
        answer = self._client.infer(ENSEMBLE, infer_inputs(triton, request))
        json.loads(answer.as_numpy("INFO")[0])
        return answer.as_numpy("FRAMES").tobytes()
