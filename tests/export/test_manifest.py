import shutil

import pytest

from export import manifest
from wan.checkpoint import Checkpoint


@pytest.fixture
def copy(checkpoint, tmp_path) -> Checkpoint:
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    return Checkpoint.open(tmp_path / "checkpoint")


def test_the_source_lists_every_file_that_an_export_reads(copy):
    described = manifest.describe_source(copy)
    names = set(described["files"])
    assert {"wan.json", "transformer/config.json", "vae/config.json", "text_encoder/model.safetensors"} <= names
    assert any(name.startswith("tokenizer/") for name in names)
    assert described["path"] == str(copy.root)


def test_the_hash_follows_the_content_and_not_the_time(copy):
    before = manifest.describe_source(copy)
    (copy.root / "wan.json").touch()
    assert manifest.describe_source(copy)["sha256"] == before["sha256"]
    text = (copy.root / "wan.json").read_text()
    (copy.root / "wan.json").write_text(text + "\n")
    assert manifest.describe_source(copy, known=before)["sha256"] != before["sha256"]


def test_a_file_of_known_size_and_time_is_not_read_again(copy, monkeypatch):
    known = manifest.describe_source(copy)
    read = []
    monkeypatch.setattr(manifest, "sha256_file", lambda path: read.append(path) or "0" * 64)
    assert manifest.describe_source(copy, known)["sha256"] == known["sha256"]
    assert read == []


def test_the_repository_is_current_until_something_changes(tmp_path):
    (tmp_path / "model").write_bytes(b"12345")
    wanted = {"format": 1, "target": "cpu", "options": {"denoise_instances": 1}, "code": "c", "source": {"sha256": "s"}}
    old = wanted | {"artifacts": {"model": {"bytes": 5}}}
    reasons = []
    assert manifest.is_current(tmp_path, old, wanted, reasons.append)
    assert not manifest.is_current(tmp_path, None, wanted, reasons.append)
    for change in ({"target": "gpu"}, {"options": {}}, {"code": "d"}, {"source": {"sha256": "t"}}, {"format": 2}):
        assert not manifest.is_current(tmp_path, old, wanted | change, reasons.append)
    (tmp_path / "model").write_bytes(b"123")
    assert not manifest.is_current(tmp_path, old, wanted, reasons.append)
    assert len(reasons) == 6  # each says what has changed; a first export has nothing to say


def test_a_damaged_manifest_counts_as_none(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": 1')
    assert manifest.read(tmp_path) is None
