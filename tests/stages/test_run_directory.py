import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch

from stages.run_directory import (
    KEPT_DIRECTORIES,
    MARK,
    CheckpointDamaged,
    CheckpointRefused,
    RunDirectory,
    StepCheckpoint,
    sweep,
)
from wan.errors import InvalidRequest

STATE = {"latents": torch.arange(6.0).reshape(2, 3), "history.0": torch.ones(1)}


@pytest.mark.parametrize("request_id", ["../x", "a/b", ".", "..", "a b", "x" * 65, "ü", "a\n", "/etc"])
def test_an_id_that_could_leave_the_directory_is_refused(tmp_path, request_id):
    with pytest.raises(InvalidRequest, match="request id is"):
        RunDirectory(tmp_path / "runs", request_id).open()
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_without_an_id_or_a_root_there_is_no_directory(tmp_path):
    assert RunDirectory.of_request(None, "abc") is None
    assert RunDirectory.of_request(tmp_path, "") is None
    assert RunDirectory.of_request(tmp_path, "A-b_9").path == tmp_path / "A-b_9"


def test_progress_is_replaced_and_no_temporary_file_stays(tmp_path):
    run = RunDirectory(tmp_path / "runs", "r").open()
    for step in (1, 2):
        run.write_progress({"step": step})
    assert json.loads((run.path / "progress.json").read_text()) == {"step": 2}
    assert {path.name for path in run.path.iterdir()} == {"progress.json", MARK}


def test_a_write_that_fails_is_no_error_and_keeps_the_old_file_and_no_temporary_one(tmp_path, caplog):
    run = RunDirectory(tmp_path / "runs", "r").open()
    run.write_progress({"step": 1})

    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    run.replace("progress.json", fail)
    assert "progress.json of request r is not written: disk full" in caplog.text
    assert json.loads((run.path / "progress.json").read_text()) == {"step": 1}
    assert {path.name for path in run.path.iterdir()} == {"progress.json", MARK}


def test_a_cancel_is_the_existence_of_a_file(tmp_path):
    run = RunDirectory(tmp_path / "runs", "r").open()
    assert not run.cancelled()
    (run.path / "cancel").touch()
    assert run.cancelled()


def test_a_directory_that_was_removed_counts_as_a_cancel(tmp_path):
    run = RunDirectory(tmp_path, "r").open()
    shutil.rmtree(run.path)
    assert run.cancelled()


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path):
    run = RunDirectory(tmp_path / "runs", "r").open()
    assert run.load_checkpoint("f") is None
    assert run.checkpoint_seed() is None
    run.save_checkpoint(StepCheckpoint(7, 2**63 - 1, STATE), "f")
    loaded = run.load_checkpoint("f")
    assert (loaded.step, loaded.seed, run.checkpoint_seed()) == (7, 2**63 - 1, 2**63 - 1)
    assert all(torch.equal(loaded.state[name], STATE[name]) for name in STATE)
    run.remove_checkpoint()
    assert run.load_checkpoint("f") is None


def test_a_checkpoint_of_another_request_is_refused(tmp_path):
    run = RunDirectory(tmp_path / "runs", "r").open()
    run.save_checkpoint(StepCheckpoint(7, 1, STATE), "aaaa")
    with pytest.raises(CheckpointRefused, match="fingerprint aaaa, this request has bbbb.*remove the checkpoint"):
        run.load_checkpoint("bbbb")


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_checkpoint_that_was_cut_is_damaged(tmp_path, keep):
    run = RunDirectory(tmp_path, "r").open()
    run.save_checkpoint(StepCheckpoint(7, 1, STATE), "f")
    run.checkpoint_path.write_bytes(run.checkpoint_path.read_bytes()[:keep])
    with pytest.raises(CheckpointDamaged, match=r"checkpoint.safetensors \(\d+ bytes\) does not have the digest"):
        run.load_checkpoint("f")
    assert run.checkpoint_seed() is None


def test_a_checkpoint_with_any_one_bit_flipped_is_damaged(tmp_path):
    run = RunDirectory(tmp_path, "r").open()
    run.save_checkpoint(StepCheckpoint(7, 1, STATE), "f")
    sound = run.checkpoint_path.read_bytes()
    chosen = random.Random(0)
    for place in (0, 7, 8, len(sound) - 1, *(chosen.randrange(len(sound)) for _ in range(200))):
        damaged = bytearray(sound)
        damaged[place] ^= 1 << chosen.randrange(8)
        run.checkpoint_path.write_bytes(damaged)
        with pytest.raises(CheckpointDamaged):
            run.load_checkpoint("f")


def made_by_a_stage(root: Path, name: str, age: float) -> Path:
    """A directory that a request has left, `age` seconds ago."""
    path = RunDirectory(root, name).open().path
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_of_two_hundred_directories_that_stages_made_only_the_newest_stay(tmp_path):
    for n in range(200):
        made_by_a_stage(tmp_path, f"r{n}", age=400 - n)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"r{n}" for n in range(200 - KEPT_DIRECTORIES, 200)}


def test_directories_older_than_an_hour_and_no_others_are_swept(tmp_path):
    old, new = made_by_a_stage(tmp_path, "old", age=3700), made_by_a_stage(tmp_path, "new", age=3500)
    (tmp_path / "of-the-caller").mkdir()
    RunDirectory(tmp_path, "of-the-caller").open().write_progress({})
    os.utime(tmp_path / "of-the-caller", (0, 0))
    sweep(tmp_path)
    assert not old.exists()
    assert new.exists()
    assert (tmp_path / "of-the-caller").exists()


def test_a_directory_in_use_is_not_swept(tmp_path):
    run = RunDirectory(tmp_path, "r").open()
    os.utime(run.path, (0, 0))
    sweep(tmp_path, keep=0)
    assert run.path.exists()
    path = run.path
    del run
    sweep(tmp_path, keep=0)
    assert not path.exists()
