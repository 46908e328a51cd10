"""What the settings of the denoise stage do: how it computes is chosen, reported and part of a checkpoint's identity."""

import contextlib
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from stages import denoise_stage
from stages.artifacts import Artifacts
from stages.denoise_stage import DenoiseStage
from stages.device import NotFinite
from stages.metrics import DenoiseMetrics
from stages.run_directory import CheckpointRefused
from stages.settings import StageSettings
from tests.stages.recording_metrics import RecordingBackend
from tests.stages.requests import Request, text
from wan import fastest
from wan.checkpoint import Checkpoint
from wan.denoise import Denoiser
from wan.errors import InvalidRequest


@pytest.fixture
def stage(repository, tmp_path):
    """Builds a stage over the exported repository with some settings."""
    place = {"model_repository": str(repository / "denoise"), "model_version": "1", "model_name": "denoise"}
    common = {
        "run_dir": tmp_path,
        "compile_dir": tmp_path / "kept",
        "denoise_threads": torch.get_num_threads(),
        "checkpoint_seconds": 1e-6,
    }

    def build(metrics: DenoiseMetrics | None = None, **settings) -> DenoiseStage:
        metrics = metrics or DenoiseMetrics(RecordingBackend(), "0")
        return DenoiseStage(Artifacts.open(place), StageSettings(**common | settings), metrics)

    return build


@pytest.fixture
def ask(checkpoint):
    """INFO of a short request to a stage, some of whose REQUEST may be replaced."""
    opened = Checkpoint.open(checkpoint)
    small = {"width": 32, "height": 32, "num_frames": 5, "steps": 3}
    generation = opened.card.request(prompt="a cat", seed=1, cache_threshold=0.0, **small)
    context = np.zeros((1, 512, opened.dit_config().text_dim), np.float32)
    tensors = {
        "CONTEXT": context,
        "NEGATIVE_CONTEXT": context,
        "REQUEST": text(json.dumps(asdict(generation) | {"tokenized_at": 0.0})),
    }

    def send(stage: DenoiseStage, request_id: str = "", **changed) -> dict:
        given = json.loads(tensors["REQUEST"][0]) | changed
        return json.loads(stage.handle(Request(tensors | {"REQUEST": text(json.dumps(given))}, request_id))["INFO"][0])

    return send


def test_without_settings_nothing_is_lost_and_the_info_says_so(stage, ask):
    engine = ask(stage())["engine"]
    assert (engine["linear"], engine["attention"], engine["compiled"]) == ("onednn", "onednn", False)


def test_the_settings_choose_how_it_computes(stage, ask):
    engine = ask(stage(linear="fp8", attention="int8"))["engine"]
    assert (engine["linear"], engine["attention"]) == ("fp8", "int8")


def test_what_this_machine_lacks_is_refused_at_the_start(stage):
    with pytest.raises(InvalidRequest, match="attention is 'flash3'; allowed: sdpa, onednn.*needs a CUDA GPU"):
        stage(attention="flash3")


def test_a_run_continues_only_with_the_same_arithmetic(stage, ask):
    assert ask(stage(), "job-1")["resumed_from"] is None
    assert ask(stage(), "job-1")["resumed_from"] == 2
    with pytest.raises(CheckpointRefused):
        ask(stage(attention="int8"), "job-1")


def test_a_run_continues_with_another_lossless_attention(stage, ask):
    """Machines choose it by measurement, so that a job may come to one that chose otherwise."""
    assert ask(stage(attention="sdpa"), "job-1")["resumed_from"] is None
    info = ask(stage(attention="onednn"), "job-1")
    assert (info["resumed_from"], info["engine"]["attention"]) == (2, "onednn")


def test_the_choice_of_attention_and_its_figures_are_in_the_info_and_in_a_metric(stage, ask, monkeypatch):
    monkeypatch.setattr(fastest, "measure", lambda backends, *_: {b.name: 1.0 + (b.name != "sdpa") for b in backends})
    monkeypatch.setattr(fastest, "_MEASURED", {})
    backend = RecordingBackend()
    info = ask(stage(attention="auto-8bit", metrics=DenoiseMetrics(backend, "0_0")))
    assert info["engine"]["attention"] == "sdpa"
    assert info["attention_ms"] == {"onednn": 2.0, "sdpa": 1.0, "int8": 2.0, "int8-fp8": 2.0}
    measured = {
        name: backend.of("wan_triton_attention_milliseconds", backend=name, chosen=chosen).value
        for name, chosen in (("sdpa", "true"), ("onednn", "false"))
    }
    assert measured == {"sdpa": 1.0, "onednn": 2.0}


def test_every_size_to_warm_runs_with_and_without_guidance(stage, monkeypatch):
    ran = []
    monkeypatch.setattr("wan.denoise.Denoiser.run", lambda self, text, request, schedule: ran.append(request))
    stage(warm_sizes=((32, 32, 5), (48, 32, 1)))
    assert {(r.width, r.height, r.num_frames, r.guidance_scale == 1) for r in ran} == {
        (32, 32, 5, False), (32, 32, 5, True), (48, 32, 1, False), (48, 32, 1, True),
    }  # fmt: skip


def test_every_size_of_the_plans_is_warmed_and_the_default_first(stage, monkeypatch):
    ran = []
    original = Artifacts.open

    def with_plans(args):
        artifacts = original(args)
        artifacts.manifest["sizes"] = {"fixed": [[32, 48], [64, 64]], "range": None}
        return artifacts

    monkeypatch.setattr(Artifacts, "open", with_plans)
    monkeypatch.setattr("wan.denoise.Denoiser.run", lambda self, conditioning, request, **options: ran.append(request))
    stage()
    assert list(dict.fromkeys((r.width, r.height) for r in ran)) == [(64, 64), (32, 48)]


def test_latents_and_embeddings_cross_through_the_host(stage, ask):
    """As tensors on a GPU they would make each process open a context on the others' GPUs."""
    request = {}
    built = stage()
    original = built.handle
    built.handle = lambda r: request.setdefault("answer", original(r))
    ask(built)
    assert all(isinstance(value, np.ndarray) for value in request["answer"].values())


def test_flipped_bits_in_a_checkpoint_cost_its_steps_and_change_nothing_else(stage, ask, tmp_path):
    here = stage()
    ask(here, "job-1")
    path = tmp_path / "job-1" / "checkpoint.safetensors"
    damaged = bytearray(path.read_bytes())
    for place in range(len(damaged) - 3000, len(damaged) - 1000, 10):
        damaged[place] ^= 1
    path.write_bytes(damaged)
    info = ask(here, "job-1")
    assert info["resumed_from"] is None
    assert info["steps_computed"] == 3
    assert "does not have the digest" in info["checkpoint_refused"]
    assert "checkpoint_refused" not in ask(here, "job-1")


def test_arithmetic_that_breaks_down_is_no_fault_of_the_request(stage, ask):
    sick = stage()
    with torch.inference_mode():
        next(sick._denoiser.experts[0].dit.parameters()).fill_(float("nan"))
    with pytest.raises(NotFinite, match="after step 1 of 3"):
        ask(sick)


@pytest.mark.parametrize("changed", [
    {"width": 2048, "height": 2048, "num_frames": 257}, {"width": 10**400}, {"width": 32.0}, {"steps": True},
    {"prompt": "\ud800"}, {"sampler": []}, {"tokenized_at": 10**400}, {"tokenized_at": None}, {"seed": -1},
])  # fmt: skip
def test_a_request_that_did_not_pass_the_tokenizer_is_checked_here(stage, ask, changed):
    with pytest.raises(InvalidRequest):
        ask(stage(), **changed)


def test_it_loads_and_computes_while_its_device_is_current(stage, ask, monkeypatch):
    current, ran_on = [], []

    @contextlib.contextmanager
    def on_device(device):
        current.append(device)
        yield
        current.pop()

    original = Denoiser.run
    monkeypatch.setattr(denoise_stage, "on_device", on_device)
    monkeypatch.setattr(Denoiser, "run", lambda *a, **k: (ran_on.append(current[-1:]), original(*a, **k))[1])
    ask(stage())
    assert ran_on == [[torch.device("cpu")]] * len(ran_on)
    assert len(ran_on) > 1  # warming up and the request
