import json

import pytest

from stages.artifacts import FORMAT, ArtifactError, Artifacts


@pytest.fixture
def exported(tmp_path):
    version = tmp_path / "denoise" / "1"
    version.mkdir(parents=True)
    (version / "weights").write_bytes(b"12345")
    manifest = {
        "format": FORMAT,
        "target": "cpu",
        "source": {"path": "models/tiny"},
        "artifacts": {"denoise/1/weights": {"bytes": 5}, "vae_decoder/1/absent": {"bytes": 1}},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def opened(repository) -> Artifacts:
    args = {"model_repository": str(repository / "denoise"), "model_version": "1", "model_name": "denoise"}
    return Artifacts.open(args)


def test_a_model_checks_its_own_files_and_no_others(exported):
    assert opened(exported)["weights"].read_bytes() == b"12345"


def test_a_missing_manifest_names_the_command(tmp_path):
    with pytest.raises(
        ArtifactError, match=r"manifest.json is missing; run: python -m export CHECKPOINT --target cpu --out"
    ):
        opened(tmp_path)


def test_a_manifest_that_is_not_json_is_refused(exported):
    (exported / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="is not JSON"):
        opened(exported)


def test_another_format_is_refused(exported):
    (exported / "manifest.json").write_text(json.dumps({"format": FORMAT + 1}))
    with pytest.raises(ArtifactError, match=f"has format {FORMAT + 1}, this code reads {FORMAT}"):
        opened(exported)


def test_a_file_that_is_missing_or_cut_off_is_refused_with_the_command(exported):
    (exported / "denoise" / "1" / "weights").write_bytes(b"123")
    with pytest.raises(ArtifactError, match="has 3 bytes, the manifest says 5; run: python -m export models/tiny"):
        opened(exported)
    (exported / "denoise" / "1" / "weights").unlink()
    with pytest.raises(ArtifactError, match="weights is missing; run: python -m export models/tiny"):
        opened(exported)
