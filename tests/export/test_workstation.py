"""The target of a machine with a GPU and no containers; everything but the GPU itself runs here, with `--device cpu`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpcclient

from contract.geometry import Geometry
from contract.tensors import infer_inputs
from export import __main__ as command
from export import residency, targets
from export.driver import export
from export.memory import DitBytes
from export.options import Options
from export.placement import GIB, PlacementError
from export.workstation import Fit, Needs, fit
from stages import cost
from stages.artifacts import ArtifactError, Artifacts
from stages.runtimes import open_clip, open_text_encoder, open_vae, open_vae_encoder
from stages.settings import StageSettings
from stages.vae_runtime import encode
from wan import known_frames
from wan.pictures import clip_pixels
from wan.pipeline import Pipeline

ROOT = Path(__file__).parents[2]
HOPPER, AMPERE = (9, 0), (8, 0)


def dit(gib: float, blocks: int, experts: int = 1) -> DitBytes:
    """Of so many GiB, all in blocks."""
    total = int(gib * GIB)
    return DitBytes(experts, blocks, total // blocks // experts, 0, total)


TEXT: dict = {"text_encoder": 11 * GIB, "text_streamed": 3 * GIB}
SMALL = Needs({"bfloat16": dit(2.8, 28), "fp8": dit(1.4, 28)}, **TEXT, rest=2 * GIB)
LARGE = Needs({"bfloat16": dit(28, 40), "fp8": dit(14, 40)}, **TEXT, rest=4 * GIB)
PAIR = Needs({"bfloat16": dit(56, 40, 2), "fp8": dit(28, 40, 2)}, **TEXT, rest=4 * GIB)


@pytest.mark.parametrize(
    ("needs", "memory", "host", "capability", "expected"),
    [
        (SMALL, 24, 64, AMPERE, Fit("cuda:0", "bfloat16")),
        (SMALL, 12, 64, AMPERE, Fit("cuda:0", "bfloat16", stream_text_encoder=True)),
        (LARGE, 80, 64, HOPPER, Fit("cuda:0", "bfloat16")),
        (LARGE, 40, 64, HOPPER, Fit("cuda:0", "bfloat16", True)),
        (LARGE, 32, 64, HOPPER, Fit("cuda:0", "bfloat16", True, 30)),
        (LARGE, 24, 64, AMPERE, Fit("cuda:0", "bfloat16", True, 20)),
        (LARGE, 32, 38, HOPPER, Fit("cuda:0", "fp8", True)),  # the host has no room for bfloat16
        (LARGE, 16, 38, HOPPER, Fit("cuda:0", "fp8", True, 18)),
        (PAIR, 72, 80, HOPPER, Fit("cuda:0", "bfloat16", True)),
        (PAIR, 48, 80, HOPPER, Fit("cuda:0", "bfloat16", True, 40)),  # one expert at a time
        (PAIR, 24, 80, HOPPER, Fit("cuda:0", "bfloat16", True, 20)),
        (PAIR, 24, 64, HOPPER, Fit("cuda:0", "fp8", True, 40)),
    ],
)
def test_nothing_is_lost_for_as_long_as_it_fits(needs, memory, host, capability, expected):
    assert fit(needs, memory * GIB, capability, host=host * GIB) == expected


def test_what_does_not_fit_is_refused_with_the_numbers():
    says = (
        r"cuda:0 has 6\.1 GiB for weights beside 4\.0 GiB .*, the host 16\.0; needed: bfloat16: 39\.0; bfloat16, text"
        r" encoder streamed: 31\.0; with the DiT's blocks streamed: 4\.4, and 39\.0 of the host's memory$"
    )
    with pytest.raises(PlacementError, match=says):
        fit(LARGE, 12 * GIB + GIB // 2, AMPERE, host=16 * GIB)
    with pytest.raises(
        PlacementError, match=r"blocks streamed: 4\.4, .*; fp8: 25\.0; .*blocks streamed: 3\.7, and 25\.0"
    ):
        fit(LARGE, 8 * GIB, HOPPER, host=64 * GIB)


def test_the_documented_table_is_what_the_export_decides():
    assert residency.table() in (ROOT / "docs/memory.md").read_text()


@pytest.mark.parametrize(
    ("gpu", "tensorrt", "triton", "expected"),
    [(False, True, True, "cpu"), (True, False, True, "workstation"), (True, True, False, "workstation"), (True, True, True, "gpu")],
)  # fmt: skip
def test_auto_takes_the_best_target_of_the_machine(gpu, tensorrt, triton, expected, monkeypatch, tmp_path):
    def import_tensorrt():
        if not tensorrt:
            raise ImportError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(targets, "import_tensorrt", import_tensorrt)
    monkeypatch.setattr(targets, "GPU_TRITON", tmp_path if triton else tmp_path / "absent")
    assert targets.automatic() == expected


def test_without_a_gpu_the_target_is_refused_and_what_is_possible_named(checkpoint, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert command.main([str(checkpoint), "--target", "workstation", "--out", str(tmp_path / "r")]) == 1
    assert "sees no CUDA GPU here; allowed: --target cpu, or --device cpu" in capsys.readouterr().err


@pytest.fixture(scope="module")
def workstation(checkpoint, tmp_path_factory):
    """The repository of this target with the CPU in the place of the GPU."""
    out = tmp_path_factory.mktemp("workstation") / "repository"
    assert export(checkpoint, "workstation", out, Options(device="cpu"), report=lambda text: None)
    return out


@pytest.fixture(scope="module")
def pipeline(checkpoint):
    return Pipeline.from_checkpoint(checkpoint)


def test_it_copies_the_dit_alone_and_traces_no_graph(workstation):
    files = {path.name for path in workstation.rglob("*") if path.is_file()}
    assert not any(name.endswith((".onnx", ".plan")) for name in files)
    manifest = json.loads((workstation / "manifest.json").read_text())
    assert (manifest["target"], manifest["device"], manifest["stream_text_encoder"]) == ("workstation", "cpu", False)
    assert manifest["blocks_on_device"] is None


def test_its_runtimes_compute_what_the_pipeline_does_streamed_or_whole(workstation, pipeline):
    settings = StageSettings()
    artifacts = Artifacts.of(workstation, "text_encoder")
    ids, mask = (tokens.numpy() for tokens in pipeline.tokenizer(["a red circle"]))
    expected = pipeline.encode(["a red circle"]).numpy()
    for streamed in (False, True):
        artifacts.manifest["stream_text_encoder"] = streamed
        encoder = open_text_encoder(artifacts, settings)
        for _ in range(2):  # a streamed layer has its weights back
            np.testing.assert_allclose(encoder.encode(ids, mask), expected, atol=1e-5)
    served = cost.ServedPipeline.open(workstation, settings)
    latents = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(served.decode(latents), pipeline.decode(latents))


def test_the_encoders_of_a_model_that_begins_with_a_picture_compute_what_the_pipeline_does(checkpoint, tmp_path):
    source, out, picture = checkpoint.with_name("tiny-i2v"), tmp_path / "repository", np.full((64, 64, 3), 90, np.uint8)
    assert export(source, "workstation", out, Options(device="cpu"), report=lambda text: None)
    pipeline, size, geometry = Pipeline.from_checkpoint(source), (64, 64, 9), Geometry()
    clip = open_clip(Artifacts.of(out, "image_encoder"), StageSettings())
    found = clip.tokens(clip_pixels(picture, pipeline.clip.config.image_size)[None].numpy())
    np.testing.assert_allclose(found, pipeline.image_tokens({0: picture}).numpy(), atol=1e-5)
    encoder = open_vae_encoder(Artifacts.of(out, "vae_encoder"), StageSettings())
    served = known_frames.channels({0: picture}, size, geometry, lambda chunks: encode(encoder, chunks))
    expected = known_frames.channels({0: picture}, size, geometry, pipeline.vae.encode_stream)
    torch.testing.assert_close(served, expected, rtol=0, atol=1e-5)


def test_it_is_measured_as_it_is_served_and_the_file_says_how(workstation, tmp_path):
    out = tmp_path / "cost.json"
    sizes = ["32x32x5", "48x32x5", "32x48x9", "64x32x5", "64x64x5", "48x48x9"]
    assert cost.main([str(workstation), "--repeats", "1", "--out", str(out), "--sizes", *sizes]) in (0, 1)
    written = json.loads(out.read_text())
    assert written["engine"] == {
        "linear": "onednn", "attention": "onednn", "text_attention": "onednn", "compiled": False, "dtype": "float32",
    }  # fmt: skip
    assert written["per_token"] > 0


def test_a_checkpoint_that_changed_since_is_refused(workstation):
    artifacts = Artifacts.of(workstation, "vae_decoder")
    name = next(name for name in artifacts.manifest["source"]["files"] if name.startswith("vae/"))
    artifacts.manifest["source"]["files"][name]["bytes"] += 1
    with pytest.raises(ArtifactError, match="has changed since the export; run: "):
        open_vae(artifacts, StageSettings())


def test_the_real_server_serves_it(workstation, pipeline, tmp_path):
    from service.launcher.server import TritonServer

    asked = {"prompt": "a red circle moves left on a black background", "steps": 3, "seed": 7, "cache_threshold": 0.0}
    with TritonServer(workstation, run_dir=tmp_path / "run", log_path=tmp_path / "triton.log") as server:
        client = grpcclient.InferenceServerClient(server.grpc_url)
        result = client.infer("wan", infer_inputs(grpcclient, asked))
        frames, info = result.as_numpy("FRAMES"), json.loads(result.as_numpy("INFO")[0])
        client.close()
    assert info["engine"]["linear"] == "onednn"
    expected = pipeline(**asked).frames.astype(int)
    assert frames.shape == expected.shape
    assert np.abs(frames - expected).max() <= 2
