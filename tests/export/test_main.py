import json
import shutil
from dataclasses import replace

import pytest

from export import __main__ as command
from export import manifest, targets
from export.driver import export
from export.options import Options


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
    assert set(written["parity"]) == {"text_encoder/model.onnx", "vae_decoder/first.onnx", "vae_decoder/next.onnx"}
    assert all(entry["max_difference"] < 1e-4 * entry["max_value"] for entry in written["parity"].values())
    assert written["precision"]["vae_decoder"] == "float32"
    for name, entry in written["artifacts"].items():
        assert (repository / name).stat().st_size == entry["bytes"]
    hashed = "vae_decoder/1/next.onnx"
    assert manifest.sha256_file(repository / hashed) == written["artifacts"][hashed]["sha256"]


def test_the_dit_is_packaged_as_it_was(checkpoint, repository):
    package = repository / "denoise" / "1" / "checkpoint" / "transformer"
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (package / name).read_bytes() == (checkpoint / "transformer" / name).read_bytes()


def test_a_checkpoint_whose_text_encoder_does_not_fit_its_dit_is_refused(checkpoint, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / "text_encoder" / "model.safetensors"
    save_file(
        {name: t[..., :-2].contiguous() if name == "shared.weight" else t for name, t in load_file(file).items()}, file
    )
    assert command.main([str(tmp_path / "checkpoint"), "--out", str(tmp_path / "out")]) == 1
    assert "text encoder width 126, the DiT expects 128" in capsys.readouterr().err
