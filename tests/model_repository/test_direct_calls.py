"""Stages that are called without the ensemble, by a caller who sends what no other stage has checked."""

import json
import time
from dataclasses import asdict

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from contract import ModelCard
from stages.run_directory import KEPT_DIRECTORIES
from tests.model_repository.client import metric

SMALLEST = {"width": 16, "height": 16, "num_frames": 1, "steps": 1, "guidance_scale": 1.0, "sampler": "euler"}
GENERATION = asdict(ModelCard().request(prompt="x", negative_prompt="", seed=0, **SMALLEST)) | {"tokenized_at": 0.0}
INFO = {"steps": 1, "steps_skipped": 0, "seconds": {"denoise": 0.1}}
DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def text(triton) -> dict:
    return json.loads((triton.repository / "manifest.json").read_text())["text"]


def call(triton, model: str, tensors: dict, request_id: str = "", seconds: float | None = 30, **parameters):
    inputs = []
    for name, value in tensors.items():
        array = np.array([value], np.object_) if isinstance(value, str) else value
        kind = {"O": "BYTES", "i": "INT32", "f": "FP32"}[array.dtype.kind]
        tensor = grpcclient.InferInput(name, list(array.shape), kind)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    with grpcclient.InferenceServerClient(triton.grpc_url) as client:
        return client.infer(model, inputs, request_id=request_id, client_timeout=seconds, parameters=parameters or None)


def denoise(triton, text: dict, request: str | dict, **options):
    context = np.zeros((1, text["length"], text["dim"]), np.float32)
    request = request if isinstance(request, str) else json.dumps(GENERATION | request)
    return call(triton, "denoise", {"REQUEST": request, "CONTEXT": context, "NEGATIVE_CONTEXT": context}, **options)


def decode(triton, shape: tuple, info: str | dict = INFO, **options):
    info = info if isinstance(info, str) else json.dumps(info)
    return call(triton, "vae_decoder", {"LATENTS": np.zeros(shape, np.float32), "DENOISE_INFO": info}, **options)


def memory(triton, stage: str) -> int:
    return sum(s.process.memory_info().rss for s in triton.stubs if s.instance.startswith(stage))


def check_refused(triton, stage: str, send) -> str:
    """The request is refused as the caller's mistake, within a second and without the memory that it asks for."""
    before, began = memory(triton, stage), time.monotonic()
    with pytest.raises(InferenceServerException) as caught:
        send()
    took = time.monotonic() - began
    assert "INVALID_ARGUMENT" in str(caught.value.status()), caught.value
    assert took < 3, "far less than the hours it would compute"
    assert memory(triton, stage) - before < 200 << 20
    return caught.value.message()


@pytest.mark.parametrize("shape", [(16, 1, 640, 640), (16, 257, 64, 64), (16, 1, 7, 7), (16, 1, 2, 4000)])
def test_the_decoder_refuses_latents_of_a_video_that_nobody_may_ask_for(triton, shape):
    assert "LATENTS" in check_refused(triton, "vae_decoder", lambda: decode(triton, shape))


@pytest.mark.parametrize("info", [DEEP, "[]", "", "{}", '{"steps": "1", "steps_skipped": 0, "seconds": {}}',
                                  '{"steps": 1, "steps_skipped": 0, "seconds": []}', "x" * (3 << 20)])  # fmt: skip
def test_the_decoder_refuses_an_info_that_no_denoise_stage_writes(triton, info):
    assert "DENOISE_INFO" in check_refused(triton, "vae_decoder", lambda: decode(triton, (16, 1, 2, 2), info))


@pytest.mark.parametrize("changed", [
    {"width": 2048, "height": 2048, "num_frames": 257}, {"width": 10**6}, {"num_frames": 10**400}, {"height": 32.0},
    {"steps": 10**9}, {"steps": 0}, {"prompt": "\ud800"}, {"prompt": "x" * 10**5}, {"sampler": ["euler"]}, {"seed": -1},
    {"cache": "none"}, {"tokenized_at": "then"}, {"guidance_scale": float("nan")},
])  # fmt: skip
def test_denoise_refuses_what_the_tokenizer_refuses(triton, text, changed):
    check_refused(triton, "denoise", lambda: denoise(triton, text, changed))


@pytest.mark.parametrize("request_text", [DEEP, '{"a":' * 50_000, "", "7", "[]", "{}"])
def test_denoise_refuses_a_request_that_no_tokenizer_writes(triton, text, request_text):
    assert "REQUEST" in check_refused(triton, "denoise", lambda: denoise(triton, text, request_text))


@pytest.mark.parametrize("mask", [-1, 2, 2**31 - 1])
def test_the_text_encoder_refuses_a_mask_that_is_none(triton, text, mask):
    ids = np.ones((1, text["length"]), np.int32)
    check_refused(triton, "text_encoder", lambda: call(triton, "text_encoder", {"IDS": ids, "MASK": ids * mask}))


@pytest.mark.parametrize("number", [-1, 2**31 - 1, -(2**31)])
def test_the_text_encoder_refuses_ids_of_no_token(triton, text, number):
    ids = np.ones((1, text["length"]), np.int32)
    check_refused(triton, "text_encoder", lambda: call(triton, "text_encoder", {"IDS": ids * number, "MASK": ids}))


LONG = {"width": 128, "height": 128, "num_frames": 17, "steps": 1000}


def check_given_up(triton) -> None:
    """No slot computes any more, long before a thousand steps are over."""
    deadline = time.monotonic() + 10
    while metric(triton, "wan_denoise_inflight") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert metric(triton, "wan_denoise_inflight") == 0


@pytest.mark.parametrize("request_id", ["", "deadline"])
def test_denoise_stops_when_its_caller_no_longer_waits(triton, text, request_id):
    with pytest.raises(InferenceServerException, match="Deadline"):
        denoise(triton, text, LONG, seconds=1, request_id=request_id)
    check_given_up(triton)


def test_the_decoder_stops_when_its_caller_no_longer_waits(triton):
    with pytest.raises(InferenceServerException, match="Deadline"):
        decode(triton, (16, 60, 40, 40), seconds=0.5)
    began = time.monotonic()
    decode(triton, (16, 1, 2, 2), seconds=60)
    assert time.monotonic() - began < 15, "all sixty frames take minutes"


def test_calls_with_ids_of_their_own_leave_a_few_directories(triton, text):
    for n in range(KEPT_DIRECTORIES + 20):
        denoise(triton, text, {}, request_id=f"direct-{n}")
    decode(triton, (16, 1, 2, 2), request_id="direct-decode")
    assert len(list(triton.run_dir.glob("direct-*"))) <= KEPT_DIRECTORIES
    assert (triton.run_dir / "direct-decode").is_dir()
