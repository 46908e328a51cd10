"""Run directories from the worker's side: whatever lies in one, the worker goes on."""

import json

import pytest

from service.worker import run_directories

JOB = "video_" + "a" * 32
GOOD = {"step": 3, "steps": 9, "skipped": 1, "step_seconds": 0.5, "eta_seconds": 3.0, "phase": "denoise"}


@pytest.fixture
def run(tmp_path):
    made = run_directories.Run(tmp_path, f"{JOB}-1")
    made.create()
    return made


def test_the_progress_of_a_stage_is_read(run):
    assert run.progress() == {}
    (run.path / "progress.json").write_text(json.dumps(GOOD))
    assert run.progress() == GOOD


@pytest.mark.parametrize(
    "junk",
    ["", "[]", "null", "7", '"step"', "{", "[" * 100_000, '{"step": "3"}', '{"step": null}', '{"step": -1}', '{"step": 1e400}',
     '{"eta_seconds": NaN}', '{"step": 99999999999999999999}', '{"phase": ["denoise"]}', '{"phase": "\\u0000"}'],
)  # fmt: skip
def test_junk_is_no_progress(run, junk):
    (run.path / "progress.json").write_text(junk)
    assert run.progress() == {}


def test_bytes_that_are_no_text_are_no_progress(run):
    (run.path / "progress.json").write_bytes(b"\xff\xfe{}")
    assert run.progress() == {}


@pytest.mark.parametrize("header", [b"[]", b'{"__metadata__": []}', b'{"__metadata__": {"step": null}}', b"\xff"])
def test_a_checkpoint_with_a_junk_header_is_none(run, header):
    run.checkpoint.write_bytes(len(header).to_bytes(8, "little") + header)
    assert run_directories.checkpoint_step(run.checkpoint) is None
    assert run_directories.best_local_checkpoint(run.path.parent, JOB) is None
