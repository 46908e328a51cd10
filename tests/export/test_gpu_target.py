"""The whole GPU export. TensorRT itself needs a GPU: its place is taken where a test goes beyond that point."""

import json
import os
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from export import __main__ as command
from export import paths, targets
from export.dit.precision import Precision
from export.driver import export
from export.options import Options
from export.placement import PlacementError
from export.tensorrt import graphs as tensorrt_graphs
from export.tensorrt import plans
from stages.trt_runtime import import_tensorrt
from tests.conftest import TINY
from wan.checkpoint import Checkpoint

TINY_I2V = TINY.with_name("tiny-i2v")
OPTIONS = Options(gpus="2x80", quality=False)
VAE_PLANS = {f"{model}/{plan}" for model in ("vae_decoder", "vae_encoder") for plan in ("first.plan", "next.plan")}
PLANS = {"text_encoder/model.plan"} | VAE_PLANS


@pytest.fixture
def known_graphs(graphs, monkeypatch):
    """Takes the session's graphs instead of tracing the same networks again; returns what was asked for."""
    monkeypatch.setattr(tensorrt_graphs, "export_graphs", lambda *_: graphs[1])


@pytest.fixture
def tensorrt(monkeypatch):
    """Stands in for TensorRT on a GPU; returns the plans that were built."""
    built = []

    def build_plan(trt, job, bars):
        built.append(job)
        job.plan.write_bytes(b"plan of " + job.onnx.name.encode())
        return {"tensorrt": "10.14.1", "options": vars(job.options), "profiles": []}

    monkeypatch.setattr(targets, "load_tensorrt", lambda command: object())
    monkeypatch.setattr(plans, "build_plan", build_plan)
    monkeypatch.setattr(plans, "describe_device", lambda index: {"gpu": "H100", "compute_capability": "9.0"})
    monkeypatch.setattr(torch.cuda, "device", lambda index: open(os.devnull))  # noqa: SIM115 (a context that does nothing)
    return built


def _export(checkpoint, out, options=OPTIONS) -> tuple[bool, list[str]]:
    said: list[str] = []
    written = export(checkpoint, "gpu", out, options, "python -m export M --target gpu", said.append)
    return written, said


@pytest.mark.usefixtures("known_graphs")
def test_without_tensorrt_everything_else_is_done_and_kept(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", None)
    with pytest.raises(ImportError):
        import_tensorrt()
    out = tmp_path / "repository"
    arguments = [str(checkpoint), "--target", "gpu", "--gpus", "1x80", "--no-quality", "--out", str(out)]
    assert command.main(arguments) == 1
    printed = capsys.readouterr()
    assert "TensorRT is not installed here" in printed.err
    assert f"python -m export {' '.join(arguments)}" in printed.err
    assert "GPU memory in GiB for" in printed.out
    building = paths.building(out)
    assert (
        Checkpoint.open(paths.dit_checkpoint(building)).load_dit().blocks[0].ffn[0].weight.dtype == torch.float8_e4m3fn
    )
    assert (building / "text_encoder" / "config.pbtxt").is_file()
    assert (building / "denoise" / "1" / "checkpoint" / "fp8_errors.png").is_file()
    shards = {file: file.stat().st_mtime_ns for file in building.rglob("*.safetensors")}
    assert command.main(arguments) == 1
    assert "DiT weights" not in capsys.readouterr().out
    assert all(file.stat().st_mtime_ns == time for file, time in shards.items())


@pytest.mark.usefixtures("known_graphs")
def test_a_complete_export_and_a_second_one_that_does_nothing(checkpoint, tmp_path, tensorrt):
    out = tmp_path / "repository"
    assert _export(checkpoint, out)[0]
    manifest = json.loads((out / "manifest.json").read_text())
    assert set(manifest["plans"]) == PLANS
    assert manifest["plans"]["vae_decoder/next.plan"]["sha256"]
    assert manifest["placement"] == {"text_encoder": [0], "denoise": [0, 1], "vae_decoder": [1], "vae_encoder": [1]}
    assert manifest["dit_package"]["errors"]["worst"][0]["relative_error"] > 0
    assert len(manifest["parity"]["vae_encoder/next.onnx"]["shapes"]) == 3
    assert not paths.building(out).exists()
    assert not (out / "journal.json").exists()
    written, said = _export(checkpoint, out)
    assert not written
    assert said[-1].endswith("is up to date")
    assert len(tensorrt) == len(PLANS)


@pytest.mark.usefixtures("known_graphs")
def test_a_model_that_begins_with_a_picture_gets_plans_of_both_encoders(tmp_path, tensorrt):
    out = tmp_path / "repository"
    assert _export(TINY_I2V, out)[0]
    manifest = json.loads((out / "manifest.json").read_text())
    assert set(manifest["plans"]) == PLANS | {"image_encoder/model.plan"}
    assert manifest["placement"]["image_encoder"] == manifest["placement"]["vae_encoder"] == [1]
    assert manifest["memory"]["image_encoder"]["weights"] > 0
    assert len(manifest["vae"]["encoder_cache"]) > len(manifest["vae"]["cache"]) // 2
    shapes = {job.plan.parent.parent.name: job.profiles[0].shapes for job in tensorrt}
    assert shapes["image_encoder"]["PIXELS"].opt == (1, 3, 64, 64)
    for model in ("vae_encoder", "image_encoder"):
        config = (out / model / "config.pbtxt").read_text()
        assert "KIND_GPU" in config
        assert "gpus: 1" in config
        assert (out / model / "1" / "model.py").is_file()
    assert '"image_encoder"' in (out / "wan" / "config.pbtxt").read_text()


@pytest.mark.usefixtures("known_graphs")
def test_another_placement_renders_again_but_keeps_the_weights(checkpoint, tmp_path, tensorrt):
    out = tmp_path / "repository"
    _export(checkpoint, out)
    weights = {file.name: file.stat().st_ino for file in paths.dit_checkpoint(out).rglob("*.safetensors")}
    assert _export(checkpoint, out, Options(gpus="4x80", quality=False))[0]
    assert "gpus: 3" in (out / "denoise" / "config.pbtxt").read_text()
    assert {file.name: file.stat().st_ino for file in paths.dit_checkpoint(out).rglob("*.safetensors")} == weights


@pytest.mark.usefixtures("known_graphs")
def test_another_precision_or_lora_makes_the_weights_again(checkpoint, tmp_path, tensorrt):
    out = tmp_path / "repository"
    _export(checkpoint, out)
    before = Checkpoint.open(paths.dit_checkpoint(out)).load_dit().blocks[0].ffn[2].bias.clone()
    lora = tmp_path / "lora.safetensors"
    save_file({"blocks.0.ffn.2.diff_b": torch.ones(before.shape)}, lora)
    options = Options(gpus="2x80", quality=False, precision=Precision("fp8-ffn"), loras=((lora, 2.0),))
    _export(checkpoint, out, options)
    dit = Checkpoint.open(paths.dit_checkpoint(out)).load_dit()
    assert torch.allclose(dit.blocks[0].ffn[2].bias, before + 2, atol=0.02)
    assert dit.blocks[0].self_attn.q.weight.dtype == torch.float32
    assert dit.blocks[0].ffn[0].weight.dtype == torch.float8_e4m3fn


@pytest.mark.usefixtures("known_graphs")
def test_an_interrupted_run_does_not_build_again_what_it_has(checkpoint, tmp_path, tensorrt, monkeypatch):
    out, real = tmp_path / "repository", plans.build_plan

    def fails_at_the_decoder(trt, job, bars):
        if job.plan.name == "next.plan" and not interrupted:
            interrupted.append(job)
            raise KeyboardInterrupt
        return real(trt, job, bars)

    interrupted: list = []
    monkeypatch.setattr(plans, "build_plan", fails_at_the_decoder)
    with pytest.raises(KeyboardInterrupt):
        _export(checkpoint, out)
    assert not out.exists()
    written, said = _export(checkpoint, out)
    assert written
    assert [job.plan.name for job in tensorrt] == ["model.plan"] + 2 * ["first.plan", "next.plan"]
    assert not any("DiT weights" in line for line in said)


def test_without_matplotlib_the_errors_are_written_but_not_drawn(checkpoint, tmp_path, monkeypatch):
    for module in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, module, None)
    only = {"DiT package": targets.quantised_dit}
    monkeypatch.setitem(targets.TARGETS, "gpu", replace(targets.TARGETS["gpu"], steps=only))
    out = tmp_path / "repository"
    written, said = _export(checkpoint, out)
    assert written
    assert any("without matplotlib" in line for line in said)
    assert {file.name for file in paths.dit_checkpoint(out).glob("fp8_errors*")} == {"fp8_errors.json"}


def test_what_cannot_fit_is_refused_before_anything_is_built(checkpoint, tmp_path):
    out = tmp_path / "repository"
    with pytest.raises(PlacementError, match=r"GPU 0 needs 2\.\d GiB .* usable"):
        _export(checkpoint, out, Options(gpus="1x1"))
    assert not paths.building(out).exists()


def test_unknown_precision_and_lora_are_errors_without_a_traceback(checkpoint, tmp_path, capsys):
    base = [str(checkpoint), "--target", "gpu", "--gpus", "1x80", "--out", str(tmp_path / "r")]
    assert command.main([*base, "--precision", "int4"]) == 1
    assert "precision is 'int4'; allowed: bf16, fp8, fp8-ffn" in capsys.readouterr().err
    save_file({"blocks.99.ffn.0.lora_A.weight": torch.ones(1, 1)}, tmp_path / "bad.safetensors")
    assert command.main([*base, "--lora", f"{tmp_path / 'bad.safetensors'}=0.5"]) == 1
    assert "key blocks.99.ffn.0.lora_A.weight fits no tensor of the model" in capsys.readouterr().err
