"""A model repository on the node's own disk: complete, of the right digests, or not at all."""

import hashlib
import json
import threading

import pytest

from service.launcher import local_copy
from service.launcher.local_copy import CopyError, copy


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "shared/0.1.0"
    files = {"denoise/1/model.bin": b"w" * 5000, "denoise/config.pbtxt": b"max_batch_size: 0", "card.json": b"{}"}
    write(folder, files)
    return folder


def write(folder, files):
    artifacts = {}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        artifacts[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"artifacts": artifacts}))


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_first_pod_copies_and_the_next_ones_find_it(source, tmp_path):
    target = tmp_path / "node/0.1.0"
    assert copy(source, target) == (3, 0)
    assert tree(target) == tree(source)
    before = (target / "denoise/1/model.bin").stat().st_ino
    assert copy(source, target) == (1, 2)  # configurations are small and the operator's
    assert (target / "denoise/1/model.bin").stat().st_ino == before


def test_what_was_damaged_changed_or_left_over_is_mended(source, tmp_path):
    target = tmp_path / "node/0.1.0"
    copy(source, target)
    (target / "denoise/1/model.bin").write_bytes(b"w" * 4999 + b"x")
    (target / "denoise/1/old.bin.part").write_bytes(b"half")
    (source / "denoise/config.pbtxt").write_bytes(b"max_batch_size: 1")
    assert copy(source, target) == (2, 1)
    assert tree(target) == tree(source)
    write(source, {"card.json": b'{"new": 1}'})
    for name in ("denoise/1/model.bin", "denoise/config.pbtxt"):
        (source / name).unlink()
    copy(source, target)
    assert tree(target) == tree(source)


def test_a_file_that_is_not_what_the_manifest_says_is_refused_and_no_manifest_appears(source, tmp_path):
    target = tmp_path / "node/0.1.0"
    (source / "denoise/1/model.bin").write_bytes(b"v" * 5000)
    with pytest.raises(CopyError, match=r"model\.bin has SHA-256 .* its manifest says"):
        copy(source, target)
    assert "manifest.json" not in tree(target)
    assert not [name for name in tree(target) if name.endswith((".part", ".bin"))]


def test_a_manifest_cannot_reach_outside_the_repository(source, tmp_path):
    (source / "manifest.json").write_text(json.dumps({"artifacts": {"../../x": {"bytes": 1, "sha256": ""}}}))
    with pytest.raises(CopyError, match="inside the repository"):
        copy(source, tmp_path / "node/0.1.0")


def test_a_disk_without_room_is_left_alone_and_the_others_on_it_are_named(source, tmp_path, monkeypatch):
    monkeypatch.setattr(local_copy, "SPARE_BYTES", 1 << 60)
    (tmp_path / "node/0.0.9").mkdir(parents=True)
    with pytest.raises(CopyError, match=r"no pod of this node serves any more: 0\.0\.9"):
        copy(source, tmp_path / "node/0.1.0")


def test_pods_that_start_together_copy_each_file_once(source, tmp_path):
    results = []
    threads = [threading.Thread(target=lambda: results.append(copy(source, tmp_path / "node/0.1.0"))) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(results) == [(1, 2)] * 3 + [(3, 0)]


def test_the_command_says_what_it_did_or_why_it_could_not(source, tmp_path, capsys):
    node = tmp_path / "node"
    options = ["--source", str(source.parent), "--to", str(node)]
    assert local_copy.main([*options, str(node / "0.1.0")]) == 0
    assert "3 files copied" in capsys.readouterr().out
    assert local_copy.main([*options, str(node / "0.2.0")]) == 1
    assert "python -m export" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        local_copy.main([*options, "/elsewhere/0.1.0"])
