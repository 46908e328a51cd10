"""Requests and their files as tensors."""

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from contract.media import MEDIA
from contract.tensors import infer_inputs


@pytest.mark.parametrize("types", [tritonclient.grpc, tritonclient.http])
def test_files_are_bytes_of_one_element_beside_the_parameters(types):
    media = {medium.name: b"\x00\xffdata" for medium in MEDIA}
    inputs = {tensor.name(): tensor for tensor in infer_inputs(types, {"prompt": "p", "steps": 3}, media)}
    assert set(inputs) == {"PROMPT", "STEPS", *(medium.tensor_name for medium in MEDIA)}
    for medium in MEDIA:
        assert (inputs[medium.tensor_name].datatype(), inputs[medium.tensor_name].shape()) == ("BYTES", [1])


def test_bytes_of_a_file_are_not_cut_at_zeros():
    data = b"\x89PNG\x00\x00end\x00"
    tensor = infer_inputs(tritonclient.grpc, {}, {"image": data})[0]
    sent = tensor._get_content()
    assert sent == np.uint32(len(data)).tobytes() + data
