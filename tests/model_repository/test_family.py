"""The family of Wan 2.2 through the whole ensemble under a real Triton: small random weights, exported and called."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from tritonclient.utils import InferenceServerException

import wan
from export import paths
from export.dit.random_checkpoint import write_checkpoint
from export.driver import export
from export.options import Options
from service.launcher.server import TritonServer
from stages.artifacts import Artifacts
from stages.denoise_stage import DenoiseStage
from stages.metrics import DenoiseMetrics
from stages.settings import StageSettings
from tests.model_repository.client import generate
from tests.stages.recording_metrics import RecordingBackend
from tests.stages.requests import Request, text
from wan.checkpoint import Checkpoint
from wan.errors import Cancelled

# the one in PyTorch, which is soon exported; the other with the graphs of its own VAE
VARIANTS = {"t2v-a14b": ("workstation", Options(device="cpu")), "ti2v-5b": ("cpu", Options())}
PROMPT = "a red circle moves left"


@pytest.fixture(scope="module")
def a14b(checkpoint, tmp_path_factory):
    """Checkpoint and repository."""
    return exported("t2v-a14b", checkpoint, tmp_path_factory)


@pytest.fixture(scope="module")
def ti2v_5b(checkpoint, tmp_path_factory):
    return exported("ti2v-5b", checkpoint, tmp_path_factory)


def exported(variant, checkpoint, tmp_path_factory):
    root = tmp_path_factory.mktemp(variant)
    write_checkpoint(variant, root / "checkpoint", 2, checkpoint / "tokenizer", small=True)
    target, options = VARIANTS[variant]
    export(root / "checkpoint", target, root / "repository", options, report=lambda text: None)
    return root / "checkpoint", root / "repository"


def video_of_both(checkpoint, repository, folder, another, refused=()):
    """Pipeline's result and the ensemble's INFO for one request, whose frames agree; those of `another` differ."""
    expected = wan.Pipeline.from_checkpoint(checkpoint)(PROMPT, seed=3)
    with TritonServer(repository, run_dir=folder / "run", log_path=folder / "triton.log") as server:
        frames, info = generate(server.grpc_url, PROMPT=PROMPT, SEED=3)
        for request, message in refused:
            with pytest.raises(InferenceServerException, match=message):
                generate(server.grpc_url, PROMPT=PROMPT, **request)
        other, _ = generate(server.grpc_url, PROMPT=PROMPT, **{"SEED": 3} | another)
    assert frames.shape == (9, 64, 64, 3)
    assert np.abs(frames.astype(int) - expected.frames).max() <= 3
    assert not np.array_equal(frames, other)
    steps = {name: info[name] for name in ("steps_computed", "forwards", "fps")}
    assert steps == {name: expected.info[name] for name in steps}
    return expected, info


def test_a_video_of_two_experts_comes_out_of_the_ensemble_as_out_of_the_pipeline(a14b, tmp_path):
    expected, info = video_of_both(*a14b, tmp_path, {"GUIDANCE_SCALE_2": 1.0})
    assert info["first_expert_steps"] == expected.info["first_expert_steps"] == 4


@pytest.mark.slow
def test_a_video_of_the_vae_22_comes_out_of_the_ensemble_as_out_of_the_pipeline(ti2v_5b, tmp_path):
    refused = (
        ({"WIDTH": 48}, "WIDTH is 48; allowed: a multiple of 32"),
        ({"GUIDANCE_SCALE_2": 3.0}, "GUIDANCE_SCALE_2 is 3.0; allowed: nothing"),
    )
    expected, _ = video_of_both(*ti2v_5b, tmp_path, {"SEED": 4}, refused)
    assert expected.latents.shape == (48, 3, 4, 4)


@pytest.mark.slow
def test_every_step_of_the_vae_22_is_a_graph_of_any_size(ti2v_5b):
    compared = json.loads(paths.manifest(ti2v_5b[1]).read_text())["parity"]
    steps = [f"{model}/{file}" for model in ("vae_decoder", "vae_encoder") for file in ("first.onnx", "next.onnx")]
    for step in steps:
        assert len({tuple(row["shape"]) for row in compared[step]["shapes"]}) == 3


def test_both_experts_are_served_as_they_were(a14b):
    source, served = Checkpoint.open(a14b[0]), Checkpoint.open(paths.dit_checkpoint(a14b[1]))
    for expert in range(2):
        a, b = (opened.load_dit(expert=expert).state_dict() for opened in (served, source))
        assert all(torch.equal(a[name], tensor) for name, tensor in b.items())


@pytest.mark.parametrize("stopped_at", [2, 4, 5])  # the switch comes after step 4
def test_a_run_that_died_continues_with_the_right_expert(a14b, tmp_path, stopped_at):
    place = {"model_repository": str(a14b[1] / "denoise"), "model_version": "1",
             "model_name": "denoise"}  # fmt: skip
    settings = {"run_dir": tmp_path, "denoise_threads": torch.get_num_threads(), "checkpoint_seconds": 1e-6}
    stage = DenoiseStage(Artifacts.open(place), StageSettings(**settings), DenoiseMetrics(RecordingBackend(), "0"))
    opened = Checkpoint.open(a14b[0])
    context = np.random.default_rng(0).normal(size=(2, 1, 512, opened.dit_config().text_dim)).astype(np.float32)
    asked = asdict(opened.card.request(prompt=PROMPT, seed=1)) | {"tokenized_at": 0.0}
    tensors = {"CONTEXT": context[0], "NEGATIVE_CONTEXT": context[1], "REQUEST": text(json.dumps(asked))}
    whole = stage.handle(Request(tensors, "job-0"))["LATENTS"]

    class Dying(Request):
        looks = 0

        def is_cancelled(self):
            self.looks += 1
            return self.looks >= stopped_at

    with pytest.raises(Cancelled):
        stage.handle(Dying(tensors, "job-1"))
    continued = stage.handle(Request(tensors, "job-1"))
    assert 0 < json.loads(continued["INFO"][0])["resumed_from"] <= stopped_at
    assert np.array_equal(continued["LATENTS"], whole)
