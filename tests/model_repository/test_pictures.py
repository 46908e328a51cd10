"""A model that is given pictures under a real Triton: encoders, ensemble, resume, refusals."""

import io
import json
import shutil
import threading
import time
import uuid

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from PIL import Image
from tritonclient.utils import InferenceServerException

import wan
from contract.tensors import infer_inputs
from tests.conftest import PROJECT_ROOT
from tests.service.hostile import hostile_clips, hostile_pictures

SMALL = {"width": 64, "height": 48, "num_frames": 9, "steps": 4, "guidance_scale": 2.0}
KEPT = PROJECT_ROOT / "build" / "test-repository-i2v"


@pytest.fixture(scope="module")
def small_i2v(checkpoint, tmp_path_factory):
    """A small random DiT and CLIP of an image-to-video model, the same each time; text encoder and VAE are the trained ones."""
    from tests.wan.picture_checkpoints import write_diffusers

    return write_diffusers(tmp_path_factory.mktemp("checkpoints") / "small-i2v", checkpoint, 1)


@pytest.fixture(scope="module")
def server(small_i2v, tmp_path_factory):
    from export.driver import export
    from service.launcher.server import TritonServer

    export(small_i2v, "cpu", KEPT, report=lambda text: None)
    folder = tmp_path_factory.mktemp("triton-i2v")
    eager = {"WAN_CHECKPOINT_SECONDS": "0.001"}
    with TritonServer(KEPT, run_dir=folder / "run", log_path=folder / "triton.log", environment=eager) as server:
        yield server


def encoded(seed: int, size=(80, 60), kind: str = "PNG") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def generate(server, request_id: str = "", frames: np.ndarray | None = None, **given) -> tuple[np.ndarray, dict]:
    media = {name: given.pop(name) for name in ("image", "last_image", "video") if name in given}
    request = {"prompt": "a cat", "negative_prompt": "", "seed": 1} | SMALL | given
    inputs = infer_inputs(grpcclient, request, media)
    if frames is not None:
        inputs.append(grpcclient.InferInput("VIDEO_FRAMES", list(frames.shape), "UINT8"))
        inputs[-1].set_data_from_numpy(frames)
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        result = client.infer("wan", inputs, request_id=request_id)
    return result.as_numpy("FRAMES"), json.loads(result.as_numpy("INFO")[0])


def test_the_same_picture_and_seed_give_the_same_bytes_and_another_picture_others(server):
    first, _ = generate(server, image=encoded(1))
    assert first.shape == (9, 48, 64, 3)
    assert np.array_equal(first, generate(server, image=encoded(1))[0])
    assert not np.array_equal(first, generate(server, image=encoded(2))[0])
    assert not np.array_equal(first, generate(server, image=encoded(1), last_image=encoded(2))[0])


def test_the_ensemble_gives_what_the_pipeline_gives(server, small_i2v):
    image, last = encoded(1), encoded(2)
    found, _ = generate(server, image=image, last_image=last)
    pictures = {"image": Image.open(io.BytesIO(image)), "last_image": Image.open(io.BytesIO(last))}
    expected = wan.Pipeline.from_checkpoint(small_i2v)("a cat", negative_prompt="", seed=1, **SMALL, **pictures).frames
    assert np.abs(found.astype(int) - expected).max() <= 2


def test_a_clip_is_continued_from_its_last_frames(server, small_i2v):
    clip = np.stack([np.asarray(Image.open(io.BytesIO(encoded(i, (64, 48))))) for i in range(7)])
    found, _ = generate(server, frames=clip)
    expected = wan.Pipeline.from_checkpoint(small_i2v)("a cat", negative_prompt="", seed=1, **SMALL, video=clip).frames
    assert np.abs(found.astype(int) - expected).max() <= 2


def test_a_run_is_resumed_with_its_picture_and_no_other(server):
    whole, _ = generate(server, image=encoded(1), steps=6)
    name = f"resume-{uuid.uuid4().hex[:8]}"
    folder = server.run_dir / name
    folder.mkdir(parents=True)
    _interrupt(server, name)
    kept = server.run_dir / f"{name}-kept"
    shutil.copytree(folder, kept)
    with pytest.raises(InferenceServerException, match="was written for fingerprint"):
        generate(server, kept.name, image=encoded(2), steps=6)
    resumed, info = generate(server, name, image=encoded(1), steps=6)
    assert info["resumed_from"] > 0
    assert np.array_equal(resumed, whole)


def _interrupt(server, name: str) -> None:
    """Cancel a run after its first checkpoint."""
    folder = server.run_dir / name

    def cancel():
        while not (folder / "checkpoint.safetensors").exists():
            time.sleep(0.001)
        (folder / "cancel").touch()

    watcher = threading.Thread(target=cancel, daemon=True)
    watcher.start()
    with pytest.raises(InferenceServerException, match="cancelled after step"):
        generate(server, name, image=encoded(1), steps=6)
    watcher.join()
    (folder / "cancel").unlink()


@pytest.mark.parametrize(
    ("media", "message"),
    [
        ({}, "IMAGE is None; allowed: a file; this model needs image"),
        ({"image": b"text"}, "IMAGE is '4 bytes'; allowed: a whole PNG, JPEG, WEBP file"),
        ({"image": encoded(1)[:200]}, "IMAGE is '200 bytes'; allowed: a whole PNG"),
        ({"image": encoded(1), "video": b"text"}, "IMAGE is 'given beside video'"),
        ({"video": b"text"}, "VIDEO is '4 bytes'; allowed: an MP4 or WebM file"),
    ],
    ids=["none", "text", "cut off", "both", "no clip"],
)
def test_a_bad_picture_is_refused_by_name_and_a_good_one_still_works(server, media, message):
    with pytest.raises(InferenceServerException, match=message):
        generate(server, **media)
    assert generate(server, image=encoded(1), steps=1)[0].shape == (9, 48, 64, 3)


def hostile() -> list[tuple[str, str, list[int], np.ndarray]]:
    """(tensor, type, shape, values): files that are none, and tensors that hold no file."""
    sends = [(name, "BYTES", [1], data) for name in ("IMAGE", "LAST_IMAGE") for data in hostile_pictures()]
    sends += [("VIDEO", "BYTES", [1], data) for data in hostile_clips()]
    found = [(name, kind, shape, np.array([data], np.object_)) for name, kind, shape, data in sends]
    found += [
        ("IMAGE", "BYTES", [2], np.array([encoded(1)] * 2, np.object_)),
        ("IMAGE", "BYTES", [0], np.array([], np.object_)),
    ]
    shapes = (0, 4, 4, 3), (1, 0, 4, 3), (1, 4, 4, 4), (1, 4, 3)
    return found + [("VIDEO_FRAMES", "UINT8", list(shape), np.zeros(shape, np.uint8)) for shape in shapes]


def memory(server) -> int:
    """Bytes of the stages that open files."""
    names = ("tokenizer", "vae_encoder", "image_encoder")
    return sum(stub.process.memory_info().rss for stub in server.stubs if stub.instance.startswith(names))


@pytest.mark.timeout(600)
def test_150_hostile_files_over_grpc_get_clear_errors_and_leave_nothing(server):
    request = {"prompt": "a cat", "seed": 1} | SMALL | {"steps": 1}
    errors, before = 0, 0
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        for number, (name, kind, shape, values) in enumerate(hostile()):
            beside = {} if name in ("IMAGE", "VIDEO", "VIDEO_FRAMES") else {"image": encoded(1)}
            tensor = grpcclient.InferInput(name, shape, kind)
            tensor.set_data_from_numpy(values)
            try:
                client.infer("wan", [*infer_inputs(grpcclient, request, beside), tensor])
            except InferenceServerException as error:
                said = error.message()
                assert name in said, (number, name, said)
                assert len(said) < 500, (number, name, said)
                errors += 1
            before = before or (memory(server) if number == 20 else 0)  # the first requests' buffers are there
    assert errors >= 150
    assert memory(server) - before < 100 * 2**20
    assert generate(server, image=encoded(1), steps=1)[0].shape == (9, 48, 64, 3)


def test_triton_answers_a_repeated_picture_from_its_cache(server):
    def hits() -> dict[str, int]:
        with grpcclient.InferenceServerClient(server.grpc_url) as client:
            found = client.get_inference_statistics(as_json=True)["model_stats"]
        return {m["name"]: int(m["inference_stats"].get("cache_hit", {}).get("count", 0)) for m in found}

    generate(server, image=encoded(77), steps=1)
    before = hits()
    generate(server, image=encoded(77), steps=1, prompt="a dog", seed=9)
    after = hits()
    for model in ("vae_encoder", "image_encoder"):
        assert after[model] == before[model] + 1
