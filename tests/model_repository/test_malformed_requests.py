"""Whatever comes in, the answer is an error that names the tensor, and the server goes on."""

import json
import urllib.error
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from tests.model_repository.client import SMALLEST, generate
from tests.model_repository.malformed import CASES


def _refused(module, client, case) -> str:
    inputs = []
    for name, kind, array in case.inputs:
        tensor = module.InferInput(name, list(array.shape), kind)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    with pytest.raises(InferenceServerException) as caught:
        client.infer("wan", inputs, request_id=case.request_id)
    assert str(caught.value.status()) in ("400", "StatusCode.INVALID_ARGUMENT"), (case.what, caught.value)
    return caught.value.message()


def _check_all(module, client, url: str) -> None:
    unclear = [
        f"{case.what}: {message}" for case in CASES if case.named not in (message := _refused(module, client, case))
    ]
    assert not unclear
    frames, _ = generate(url, PROMPT="a red circle", **SMALLEST)
    assert frames.shape == (1, 16, 16, 3)


def test_there_are_two_hundred_requests_in_both_protocols():
    assert 2 * len(CASES) >= 200
    assert len({case.what for case in CASES}) == len(CASES)


def test_every_malformed_grpc_request_gets_an_error_that_names_the_tensor_and_a_good_one_still_works(triton):
    restarts = triton.restarts
    with grpcclient.InferenceServerClient(triton.grpc_url) as client:
        _check_all(grpcclient, client, triton.grpc_url)
    assert triton.ready
    assert triton.restarts == restarts


def test_every_malformed_http_request_gets_an_error_that_names_the_tensor_and_a_good_one_still_works(triton):
    restarts = triton.restarts
    with httpclient.InferenceServerClient(triton.http_address) as client:
        _check_all(httpclient, client, triton.grpc_url)
    assert triton.ready
    assert triton.restarts == restarts


@pytest.mark.parametrize(
    "content", [b"\x01", b"\x64\0\0\0abc", b"", b"\x01\0\0\0azz", b"\x01\0\0\0a\x01\0\0\0a", b"\xff\xff\xff\xffa"]
)
def test_a_string_tensor_with_a_damaged_length_is_refused(triton, content):
    request = service_pb2.ModelInferRequest(model_name="wan")
    tensor = request.inputs.add()
    tensor.name, tensor.datatype = "PROMPT", "BYTES"
    tensor.shape.append(1)
    request.raw_input_contents.append(content)
    with grpcclient.InferenceServerClient(triton.grpc_url) as client, pytest.raises(Exception, match="PROMPT"):
        client._client_stub.ModelInfer(request, timeout=20)


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":',
        b"{}",
        b"[]",
        b'{"inputs": [{"name": "PROMPT"}]}',
        b'{"inputs": [{"name": "PROMPT", "shape": [1], "datatype": "BYTES", "data": [7]}]}',
    ],
)
def test_damaged_json_is_refused(triton, body):
    request = urllib.request.Request(f"{triton.http_url}/v2/models/wan/infer", data=body)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=20)
    assert json.loads(caught.value.read())["error"]


def test_a_good_request_over_http_json_returns_the_video_of_grpc(triton):
    values = {"PROMPT": ("BYTES", "a red circle"), "SEED": ("INT64", 5)} | {
        k: ("INT32", v) for k, v in SMALLEST.items()
    }
    inputs = [{"name": name, "shape": [1], "datatype": kind, "data": [value]} for name, (kind, value) in values.items()]
    request = urllib.request.Request(
        f"{triton.http_url}/v2/models/wan/infer", data=json.dumps({"inputs": inputs}).encode()
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        outputs = {output["name"]: output for output in json.load(answer)["outputs"]}
    frames = np.array(outputs["FRAMES"]["data"], np.uint8).reshape(outputs["FRAMES"]["shape"])
    expected, _ = generate(triton.grpc_url, PROMPT="a red circle", SEED=5, **SMALLEST)
    assert np.array_equal(frames, expected)
