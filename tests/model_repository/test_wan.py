"""The ensemble on the real server: results, isolation, progress, cancel, resume, preview, cache and metrics."""

import json
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from tritonclient.utils import InferenceServerException

from tests.model_repository.client import SMALLEST, generate, metric
from wan.pipeline import Pipeline

PROMPT = "a red circle moves left on a black background"
SHORT = {"NUM_FRAMES": 5, "STEPS": 6}


def start(triton, **request) -> threading.Thread:
    """Send a request from a thread; its outcome (frames and INFO, or the error) becomes the thread's `outcome`."""

    def run():
        try:
            thread.outcome = generate(triton.grpc_url, **request)
        except InferenceServerException as error:
            thread.outcome = error

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def wait_for_step(triton, request_id: str, step: int) -> dict:
    path = triton.run_dir / request_id / "progress.json"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists() and (progress := json.loads(path.read_text()))["step"] >= step:
            return progress
        time.sleep(0.005)
    raise AssertionError(f"{request_id} did not reach step {step}")


def test_the_ensemble_makes_the_video_of_the_pipeline_in_process(triton, checkpoint):
    frames, info = generate(triton.grpc_url, PROMPT=PROMPT, SEED=3, **SHORT)
    expected = Pipeline.from_checkpoint(checkpoint)(PROMPT, seed=3, num_frames=5, steps=6)
    difference = np.abs(frames.astype(int) - expected.frames.astype(int))
    # ONNX Runtime and PyTorch differ in the last bits of a float32; a level may round the other way.
    assert frames.dtype == np.uint8
    assert frames.shape == expected.frames.shape
    assert difference.max() <= 3
    assert difference.mean() < 0.05
    assert {key: info[key] for key in expected.info if key != "seconds"} == {
        key: value for key, value in expected.info.items() if key != "seconds"
    }


def test_defaults_come_from_the_checkpoint_and_info_reports_them(triton, checkpoint):
    defaults = json.loads((checkpoint / "wan.json").read_text())["defaults"]
    frames, info = generate(triton.grpc_url, PROMPT=PROMPT)
    assert frames.shape == (defaults["num_frames"], defaults["height"], defaults["width"], 3)
    for name in (
        "width",
        "height",
        "num_frames",
        "steps",
        "guidance_scale",
        "flow_shift",
        "sampler",
        "cache",
        "cache_threshold",
        "guidance_end",
        "fps",
    ):
        assert (
            info[name] == pytest.approx(defaults[name])
            if isinstance(defaults[name], float)
            else info[name] == defaults[name]
        )
    assert info["steps_computed"] + info["steps_skipped"] == defaults["steps"]
    assert info["resumed_from"] is None
    assert set(info["seconds"]) == {"text_encoder", "denoise", "vae_decoder"}


@pytest.mark.parametrize("cache", ["teacache", "magcache"])
def test_info_reports_every_lossy_option_as_the_pipeline_in_process_does(triton, checkpoint, cache):
    options = {"cache": cache, "cache_threshold": 0.2, "guidance_end": 0.6}
    _, info = generate(
        triton.grpc_url, PROMPT=PROMPT, SEED=3, NUM_FRAMES=5, **{k.upper(): v for k, v in options.items()}
    )
    expected = Pipeline.from_checkpoint(checkpoint)(PROMPT, seed=3, num_frames=5, **options).info
    assert {name: info[name] for name in options} == options
    assert info["skipped"] == expected["skipped"] != []
    assert info["steps_skipped"] == len(info["skipped"])
    computed = set(range(info["steps"])) - set(info["skipped"])
    assert info["forwards"] == expected["forwards"] == len(computed) + sum(step < 12 for step in computed)
    assert info["engine"] == expected["engine"]
    assert set(info["engine"]) >= {"linear", "attention", "compiled", "dtype"}


@pytest.mark.parametrize("lossy", [{}, {"CACHE": "teacache", "CACHE_THRESHOLD": 0.3, "GUIDANCE_END": 0.75}])
def test_the_time_left_at_half_time_is_what_the_rest_takes(triton, lossy):
    request = dict(PROMPT=PROMPT, WIDTH=96, HEIGHT=96, STEPS=40, request_id=f"eta-{len(lossy)}", **lossy)
    thread = start(triton, **request)
    at_half = wait_for_step(triton, request["request_id"], 20)
    began = time.monotonic()
    while wait_for_step(triton, request["request_id"], 20)["phase"] == "denoise":
        time.sleep(0.005)
    took = time.monotonic() - began
    thread.join(60)
    # Wide, for a machine that does other things too; without the plan all 20 steps would count, of which the cache computes 5.
    assert took / 2 - 0.1 < at_half["eta_seconds"] < took * 2 + 0.1


def test_a_drawn_seed_is_reported_and_makes_the_same_video_again(triton):
    first, info = generate(triton.grpc_url, PROMPT=PROMPT, **SHORT)
    other, other_info = generate(triton.grpc_url, PROMPT=PROMPT, **SHORT)
    again, _ = generate(triton.grpc_url, PROMPT=PROMPT, SEED=info["seed"], **SHORT)
    assert info["seed"] != other_info["seed"]
    assert not np.array_equal(first, other)
    assert np.array_equal(first, again)


def test_requests_beside_each_other_get_the_frames_that_they_get_alone(triton):
    requests = [dict(PROMPT=f"{PROMPT} {n}", SEED=n, WIDTH=32 + 16 * n, **SHORT) for n in range(4)]
    alone = [generate(triton.grpc_url, **request)[0] for request in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(lambda request: generate(triton.grpc_url, **request)[0], requests))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_two_requests_run_at_the_same_time(triton):
    long = {"PROMPT": PROMPT, "STEPS": 300, "CACHE_THRESHOLD": 0.0}
    threads = [start(triton, request_id=f"same-time-{n}", **long) for n in range(2)]
    for n in range(2):
        wait_for_step(triton, f"same-time-{n}", 3)
    assert all(thread.is_alive() for thread in threads)
    assert metric(triton, "wan_denoise_inflight") == 2
    for n in range(2):
        (triton.run_dir / f"same-time-{n}" / "cancel").touch()
    for thread in threads:
        thread.join(30)
    assert metric(triton, "wan_denoise_inflight") == 0


def test_the_negative_prompt_changes_nothing_at_guidance_1_and_something_above(triton):
    def video(negative: str, guidance: float) -> np.ndarray:
        request = dict(PROMPT=PROMPT, NEGATIVE_PROMPT=negative, GUIDANCE_SCALE=guidance, SEED=1, **SHORT)
        return generate(triton.grpc_url, **request)[0]

    assert np.array_equal(video("blue", 1.0), video("a green square", 1.0))
    assert not np.array_equal(video("blue", 8.0), video("a green square", 8.0))


def test_a_cancel_ends_the_request_before_its_next_step_and_saves_where_it_was(triton):
    thread = start(triton, request_id="to-cancel", PROMPT=PROMPT, STEPS=1000, CACHE_THRESHOLD=0.0)
    wait_for_step(triton, "to-cancel", 3)
    (triton.run_dir / "to-cancel" / "cancel").touch()
    began = time.monotonic()
    thread.join(30)
    assert time.monotonic() - began < 2
    assert "CANCELLED" in str(thread.outcome.status())
    assert "after step" in thread.outcome.message()
    assert (triton.run_dir / "to-cancel" / "checkpoint.safetensors").exists()


def test_a_request_that_goes_on_from_a_checkpoint_makes_the_identical_video(triton):
    request = dict(PROMPT=PROMPT, SEED=11, STEPS=60, NUM_FRAMES=5, CACHE_THRESHOLD=0.0)
    expected, _ = generate(triton.grpc_url, **request)
    thread = start(triton, request_id="interrupted", **request)
    wait_for_step(triton, "interrupted", 4)
    (triton.run_dir / "interrupted" / "cancel").touch()
    thread.join(30)
    (triton.run_dir / "goes-on").mkdir()
    shutil.copy(triton.run_dir / "interrupted" / "checkpoint.safetensors", triton.run_dir / "goes-on")
    resumed_before = metric(triton, "wan_triton_denoise_steps_total", kind="resumed")
    with pytest.raises(InferenceServerException, match="fingerprint") as caught:
        generate(triton.grpc_url, request_id="goes-on", **request | {"PROMPT": "another prompt"})
    assert "INVALID_ARGUMENT" in str(caught.value.status())
    frames, info = generate(triton.grpc_url, request_id="goes-on", **request)
    assert np.array_equal(frames, expected)
    assert info["resumed_from"] >= 4
    assert info["steps_computed"] == 60 - info["resumed_from"]
    assert metric(triton, "wan_triton_denoise_steps_total", kind="resumed") == resumed_before + info["resumed_from"]


@pytest.mark.parametrize("mask", [1, 0x40])
def test_a_checkpoint_with_flipped_bits_changes_no_video_and_fails_no_request(triton, mask):
    request = dict(PROMPT=PROMPT, SEED=11, STEPS=60, NUM_FRAMES=5, CACHE_THRESHOLD=0.0)
    expected, _ = generate(triton.grpc_url, **request)
    run = triton.run_dir / f"flipped-{mask}"
    thread = start(triton, request_id=run.name, **request)
    wait_for_step(triton, run.name, 4)
    (run / "cancel").touch()
    thread.join(30)
    (run / "cancel").unlink()
    content = np.frombuffer((run / "checkpoint.safetensors").read_bytes(), np.uint8).copy()
    places = np.random.default_rng(0).choice(np.arange(len(content) // 2, len(content) - 100), 200, replace=False)
    content[places] ^= mask
    (run / "checkpoint.safetensors").write_bytes(content.tobytes())
    frames, info = generate(triton.grpc_url, request_id=run.name, **request)
    assert np.array_equal(frames, expected)
    assert info["resumed_from"] is None
    assert "digest" in info["checkpoint_refused"]


def test_a_request_without_a_seed_goes_on_with_the_seed_that_the_server_drew(triton):
    thread = start(triton, request_id="drawn", PROMPT=PROMPT, STEPS=60, CACHE_THRESHOLD=0.0)
    wait_for_step(triton, "drawn", 3)
    (triton.run_dir / "drawn" / "cancel").touch()
    thread.join(30)
    (triton.run_dir / "drawn" / "cancel").unlink()
    frames, info = generate(triton.grpc_url, request_id="drawn", PROMPT=PROMPT, STEPS=60, CACHE_THRESHOLD=0.0)
    expected, _ = generate(triton.grpc_url, PROMPT=PROMPT, STEPS=60, SEED=info["seed"], CACHE_THRESHOLD=0.0)
    assert info["resumed_from"] >= 3
    assert np.array_equal(frames, expected)


def test_a_finished_request_leaves_no_checkpoint_for_the_next_one_of_its_id(triton):
    generate(triton.grpc_url, request_id="twice", PROMPT=PROMPT, **SHORT)
    _, info = generate(triton.grpc_url, request_id="twice", PROMPT="another prompt", **SHORT)
    assert info["resumed_from"] is None


def test_progress_ends_in_the_decode_phase_with_all_steps_done(triton):
    generate(triton.grpc_url, request_id="progress", PROMPT=PROMPT, **SHORT)
    progress = json.loads((triton.run_dir / "progress" / "progress.json").read_text())
    assert set(progress) == {"step", "steps", "skipped", "step_seconds", "eta_seconds", "phase"}
    assert (progress["step"], progress["steps"], progress["phase"], progress["eta_seconds"]) == (6, 6, "decode", 0)


def test_frames_are_appended_as_they_are_decoded_where_the_request_asks_for_it(triton):
    for _ in range(2):  # what an earlier decoding left goes
        frames, _ = generate(triton.grpc_url, request_id="stream", parameters={"stream": True}, PROMPT=PROMPT, **SHORT)
    generate(triton.grpc_url, request_id="no-stream", PROMPT=PROMPT, **SHORT)
    assert (triton.run_dir / "stream" / "frames.rgb").read_bytes() == frames.tobytes()
    assert not (triton.run_dir / "no-stream" / "frames.rgb").exists()


def test_a_preview_is_written_where_the_request_asks_for_one(triton):
    generate(triton.grpc_url, request_id="preview", parameters={"preview": True}, PROMPT=PROMPT, **SHORT)
    generate(triton.grpc_url, request_id="no-preview", PROMPT=PROMPT, **SHORT)
    with Image.open(triton.run_dir / "preview" / "preview.webp") as preview:
        assert preview.format == "WEBP"
        assert preview.n_frames == 2
        assert max(preview.size) == 128
    assert not (triton.run_dir / "no-preview" / "preview.webp").exists()


def test_a_repeated_prompt_and_the_default_negative_prompt_are_answered_from_the_cache(triton):
    def counts() -> tuple[float, float]:
        return tuple(
            metric(triton, f"nv_cache_num_{what}_per_model", model="text_encoder") for what in ("hits", "misses")
        )

    generate(triton.grpc_url, PROMPT="the first of its kind", **SMALLEST)
    hits, misses = counts()
    _, info = generate(triton.grpc_url, PROMPT="the first of its kind", **SMALLEST)
    assert counts() == (hits + 2, misses)
    assert info["seconds"]["text_encoder"] == 0
    _, info = generate(triton.grpc_url, PROMPT="the second of its kind", **SMALLEST)
    assert counts() == (hits + 3, misses + 1)
    assert info["seconds"]["text_encoder"] > 0


def test_steps_and_seconds_are_counted_in_triton_metrics(triton):
    steps = metric(triton, "wan_triton_denoise_steps_total", kind="computed")
    seconds = metric(triton, "wan_triton_gpu_seconds_total", stage="denoise")
    finished = {
        s: metric(triton, "wan_triton_stage_seconds_count", stage=s) for s in ("text_encoder", "denoise", "vae_decoder")
    }
    _, info = generate(triton.grpc_url, PROMPT="counted", **SHORT)
    assert metric(triton, "wan_triton_denoise_steps_total", kind="computed") == steps + 6
    spent = metric(triton, "wan_triton_gpu_seconds_total", stage="denoise") - seconds
    assert spent == pytest.approx(info["seconds"]["denoise"], abs=0.05)
    assert all(metric(triton, "wan_triton_stage_seconds_count", stage=s) > before for s, before in finished.items())
    assert abs(metric(triton, "wan_denoise_heartbeat_timestamp_seconds", slot="0_0") - time.time()) < 3600


@pytest.mark.parametrize("stage", ["denoise", pytest.param("text_encoder", marks=pytest.mark.slow)])
def test_a_killed_stub_brings_the_server_back_and_serving(triton, stage):
    expected, _ = generate(triton.grpc_url, PROMPT=PROMPT, SEED=2, **SHORT)
    restarts = triton.restarts
    stub = next(stub for stub in triton.stubs if stub.instance.startswith(stage))
    os.kill(stub.process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while triton.restarts == restarts and time.monotonic() < deadline:
        time.sleep(0.1)
    assert triton.wait_ready(60)
    assert triton.restarts == restarts + 1
    frames, _ = generate(triton.grpc_url, PROMPT=PROMPT, SEED=2, **SHORT)
    assert np.array_equal(frames, expected)
