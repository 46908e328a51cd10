"""The configurations of the GPU target in a real Triton server, with CPU instances in the place of GPUs and plans."""

import shutil

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from export.paths import MODELS
from export.placement import parse_placement
from export.repository import gpu_config
from wan.checkpoint import Checkpoint


@pytest.fixture
def on_cpu(checkpoint, repository, tmp_path):
    """The exported CPU repository with the GPU target's configurations, whose instances are moved to the CPU."""
    folder = tmp_path / "repository"
    shutil.copytree(repository, folder)
    opened = Checkpoint.open(checkpoint)
    values = {"text_len": 512, "text_dim": opened.text_config().d_model, "z_dim": opened.vae_config().z_dim}
    placement = parse_placement("text_encoder=0,denoise=0,vae_decoder=0")
    for model in MODELS:
        config = gpu_config(model, values, placement)
        for group in config.instance_group:
            group.kind = ModelInstanceGroup.KIND_CPU
            del group.gpus[:]
        if config.backend == "tensorrt":
            config.backend, config.default_model_filename = "python", "model.py"
        (folder / model / "config.pbtxt").write_text(text_format.MessageToString(config))
    return folder


def test_ensemble_of_the_gpu_target_loads_and_answers(on_cpu, tmp_path):
    from service.launcher.server import TritonServer

    prompt = grpcclient.InferInput("PROMPT", [1], "BYTES")
    prompt.set_data_from_numpy(np.array([b"a red circle"], np.object_))
    steps = grpcclient.InferInput("STEPS", [1], "INT32")
    steps.set_data_from_numpy(np.array([2], np.int32))
    with TritonServer(on_cpu, run_dir=tmp_path / "run", log_path=tmp_path / "triton.log") as server:
        client = grpcclient.InferenceServerClient(server.grpc_url)
        frames = client.infer("wan", [prompt, steps]).as_numpy("FRAMES")
        client.close()
    assert frames.shape == (17, 64, 64, 3)
    assert frames.std() > 0
