import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from export import __main__ as command
from export import manifest, targets
from export.dit.formats import DitWeights
from export.dit.package import package
from export.dit.precision import Precision
from export.driver import export
from export.options import Options
from stages.artifacts import Artifacts
from wan import fp8
from wan.checkpoint import Checkpoint


@pytest.fixture
def quick_target(monkeypatch):
    """A target that writes one file in no time; the real one runs for the whole suite in `repository`."""
    calls = []

    def write(build):
        (build.repository / "artifact").write_text(f"{len(calls)}")
        calls.append(build.options.denoise_instances)
        if calls[-1] == 13:
            raise OSError("disk full")
        return {"defaults": {}}

    monkeypatch.setitem(targets.TARGETS, "cpu", replace(targets.TARGETS["cpu"], steps={"artifact": write}))
    return calls


def test_a_second_export_with_nothing_changed_does_nothing(checkpoint, repository):
    before = (repository / "manifest.json").stat().st_mtime_ns
    assert not export(checkpoint, "cpu", repository, Options(denoise_instances=2), report=lambda text: None)
    assert (repository / "manifest.json").stat().st_mtime_ns == before


def test_an_export_that_fails_leaves_the_old_repository_and_nothing_else(checkpoint, tmp_path, quick_target):
    out = tmp_path / "repository"
    assert export(checkpoint, "cpu", out, report=lambda text: None)
    with pytest.raises(OSError, match="disk full"):
        export(checkpoint, "cpu", out, Options(denoise_instances=13), report=lambda text: None)
    assert (out / "artifact").read_text() == "0"
    assert {path.name for path in tmp_path.iterdir()} == {"repository", ".repository.lock"}


def test_an_option_that_differs_exports_again_and_replaces_the_old_repository(checkpoint, tmp_path, quick_target):
    out, said = tmp_path / "repository", []
    export(checkpoint, "cpu", out, report=said.append)
    (out / "stale").touch()
    assert export(checkpoint, "cpu", out, Options(denoise_instances=2), report=said.append)
    assert quick_target == [1, 2]
    assert not (out / "stale").exists()
    assert any("an option has changed" in line for line in said)


def test_a_folder_without_a_checkpoint_is_an_error_and_no_traceback(tmp_path, capsys):
    assert command.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "no Wan checkpoint here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_count_below_one_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["checkpoint", "--denoise-instances", "0"])
    assert "--denoise-instances: is 0; allowed: 1 or more" in capsys.readouterr().err


def test_the_manifest_tells_source_sizes_precision_and_parity(checkpoint, repository):
    written = json.loads((repository / "manifest.json").read_text())
    assert written["source"]["path"] == str(checkpoint.resolve())
    steps = {f"{vae}/{step}.onnx" for vae in ("vae_encoder", "vae_decoder") for step in ("first", "next")}
    assert set(written["parity"]) == {"text_encoder/model.onnx", *steps}
    assert all(entry["max_difference"] < 1e-4 * entry["max_value"] for entry in written["parity"].values())
    assert written["precision"]["vae_decoder"] == "float32"
    for name, entry in written["artifacts"].items():
        assert (repository / name).stat().st_size == entry["bytes"]
    hashed = "vae_decoder/1/next.onnx"
    assert manifest.sha256_file(repository / hashed) == written["artifacts"][hashed]["sha256"]


@pytest.mark.parametrize("option", sorted(targets.TARGETS["gpu"].options - targets.TARGETS["cpu"].options))
def test_an_option_that_the_target_would_ignore_is_refused_by_name(option, checkpoint, tmp_path, capsys):
    flag, out = "--" + option.replace("_", "-"), tmp_path / "out"
    switch = option in ("no_quality", "weight_streaming", "version_compatible")
    value = {"precision": "nonsense", "hardware_compatibility": "none", "placement": "auto"}.get(option, "1")
    assert command.main([str(checkpoint), "--out", str(out), flag, *([] if switch else [value])]) == 1
    assert f"error: {flag} means nothing to --target cpu; allowed with it: --denoise-instances, --dit, --lora" in (
        capsys.readouterr().err
    )
    assert not out.exists()


def test_the_targets_know_exactly_the_options_of_the_command_line():
    known = set.union(*(set(target.options) for target in targets.TARGETS.values()))
    assert known == set(vars(command._parser().parse_args(["c"]))) - command.OF_EVERY_TARGET


def test_a_lora_that_is_not_there_is_refused(checkpoint, tmp_path, capsys):
    assert command.main([str(checkpoint), "--out", str(tmp_path / "out"), "--lora", "/no/such"]) == 1
    assert "/no/such is not a readable safetensors file" in capsys.readouterr().err


@pytest.fixture
def without_graphs(monkeypatch):
    """The CPU target without its slow step, which says nothing of the DiT."""
    cpu = targets.TARGETS["cpu"]
    steps = {name: step for name, step in cpu.steps.items() if name not in ("ONNX graphs", "preview colours")}
    monkeypatch.setitem(targets.TARGETS, "cpu", replace(cpu, steps=steps))


@pytest.mark.usefixtures("without_graphs")
def test_loras_are_merged_into_the_dit_that_a_cpu_serves(checkpoint, tmp_path):
    name, out, lora = "blocks.0.ffn.0", tmp_path / "out", tmp_path / "style.safetensors"
    before = Checkpoint.open(checkpoint).load_dit().state_dict()
    rows, columns = before[f"{name}.weight"].shape
    save_file({f"{name}.lora_up.weight": torch.ones(rows, 1), f"{name}.lora_down.weight": torch.ones(1, columns)}, lora)
    assert command.main([str(checkpoint), "--out", str(out), "--lora", f"{lora}=0.25"]) == 0
    place = {"model_repository": str(out / "denoise"), "model_version": "1", "model_name": "denoise"}
    served = Checkpoint.open(Artifacts.open(place)["checkpoint"])
    after = served.load_dit().state_dict()
    assert torch.equal(after[f"{name}.weight"], before[f"{name}.weight"] + 0.25)
    assert [key for key in before if not torch.equal(before[key], after[key])] == [f"{name}.weight"]
    assert (served.grid, served.settings) == (Checkpoint.open(checkpoint).grid, Checkpoint.open(checkpoint).settings)
    merged = manifest.read(out)
    assert merged["dit_package"]["loras"] == [{"file": lora.name, "strength": 0.25, "parameters": 1}]
    assert command.main([str(checkpoint), "--out", str(out)]) == 0
    plain = manifest.read(out)
    assert plain["model"] != merged["model"]  # a step saved with the LoRA is not continued without it
    assert plain["source"]["sha256"] == merged["source"]["sha256"]


@pytest.mark.usefixtures("without_graphs")
def test_another_dit_takes_the_place_of_the_checkpoints_own(checkpoint, tmp_path):
    other, out = tmp_path / "other", tmp_path / "out"
    source = Checkpoint.open(checkpoint)
    package(source, DitWeights(source.dit_tensors()), other, Precision("fp8"), [], "r")
    assert command.main([str(checkpoint), "--out", str(out), "--dit", str(other / "transformer")]) == 0
    ours, own = (Checkpoint.open(p).load_dit().state_dict() for p in (out / "denoise" / "1" / "checkpoint", checkpoint))
    name = "blocks.0.ffn.0.weight"
    assert torch.equal(ours[name], fp8.dequantize(*fp8.quantize_rows(own[name])))


def test_the_dit_is_packaged_as_it_was(checkpoint, repository):
    package = repository / "denoise" / "1" / "checkpoint" / "transformer"
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (package / name).read_bytes() == (checkpoint / "transformer" / name).read_bytes()


def test_a_checkpoint_whose_text_encoder_does_not_fit_its_dit_is_refused(checkpoint, tmp_path, capsys):
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / "text_encoder" / "model.safetensors"
    save_file(
        {name: t[..., :-2].contiguous() if name == "shared.weight" else t for name, t in load_file(file).items()}, file
    )
    assert command.main([str(tmp_path / "checkpoint"), "--out", str(tmp_path / "out")]) == 1
    assert "text encoder width 126, the DiT expects 128" in capsys.readouterr().err
