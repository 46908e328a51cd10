"""MP4 files, read back with ffmpeg."""

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from service import reproduce
from service.client import ClientError
from service.formats import FORMATS, H264, VP9
from service.worker.video import encode, note


def decode(path):
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    return meta, [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]


def test_frames_come_back_in_order_with_size_rate_and_pixel_format(tmp_path):
    frames = np.stack([np.full((48, 80, 3), 10 + 12 * number, np.uint8) for number in range(17)])
    encode(frames, 16, tmp_path / "v.mp4")
    meta, decoded = decode(tmp_path / "v.mp4")
    assert (meta["size"], meta["fps"], meta["codec"]) == ((80, 48), 16.0, "h264")
    assert meta["pix_fmt"].startswith("yuv420p")
    assert len(decoded) == 17
    for source, back in zip(frames, decoded, strict=True):
        assert abs(int(source.mean()) - int(back.mean())) <= 3


def test_the_index_is_at_the_front(tmp_path):
    encode(np.zeros((5, 64, 64, 3), np.uint8), 8, tmp_path / "v.mp4")
    data = (tmp_path / "v.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_equal_frames_make_equal_files(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    encode(frames, 16, tmp_path / "a.mp4")
    encode(frames, 16, tmp_path / "b.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("frames", [np.zeros((5, 33, 64, 3), np.uint8), np.zeros((5, 32, 64, 3), np.float32)])
def test_wrong_frames_are_refused(tmp_path, frames):
    with pytest.raises(ValueError, match="allowed: uint8"):
        encode(frames, 16, tmp_path / "v.mp4")


def test_a_folder_that_cannot_be_written_is_an_os_error_and_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="ffmpeg|rror|No such"):
        encode(np.zeros((5, 32, 32, 3), np.uint8), 16, tmp_path / "missing" / "v.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("made", FORMATS, ids=lambda made: made.name)
def test_every_format_holds_all_frames(tmp_path, made):
    frames = np.stack([np.full((48, 80, 3), 10 + 12 * number, np.uint8) for number in range(9)])
    file = tmp_path / f"v.{made.suffix}"
    encode(frames, 10, file, made)
    if made.name == "webp":  # ffmpeg writes animated WebP but does not read it
        with Image.open(file) as image:
            assert (image.n_frames, image.size) == (9, (80, 48))
        return
    meta, decoded = decode(file)
    assert (meta["size"], len(decoded)) == ((80, 48), 9)
    assert abs(int(frames[8].mean()) - int(decoded[8].mean())) <= 4


def test_a_worse_quality_makes_a_smaller_file(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    for made in (H264, VP9):
        for crf in (5, made.worst):
            encode(frames, 16, tmp_path / f"{crf}.{made.suffix}", made, crf)
        sizes = [(tmp_path / f"{crf}.{made.suffix}").stat().st_size for crf in (5, made.worst)]
        assert sizes[1] < sizes[0] / 2


@pytest.mark.parametrize("made", [H264, VP9], ids=lambda made: made.name)
def test_the_note_in_the_file_makes_the_request_again(tmp_path, made):
    request = {"prompt": 'a=b; #c \\ 蓝色\n"next"', "negative_prompt": "", "seed": 2**62, "steps": 4, "fps": 16}
    frames = np.zeros((5, 32, 32, 3), np.uint8)
    encode(frames, 16, tmp_path / f"v.{made.suffix}", made, None, note(request | {"embed_prompt": True}, "wan"))
    assert reproduce.request_of(reproduce.read(tmp_path / f"v.{made.suffix}"), {}) == request


def test_prompts_are_in_the_file_only_on_request_and_are_checked(tmp_path):
    request = {"prompt": "secret words", "negative_prompt": "", "seed": 7}
    encode(np.zeros((5, 32, 32, 3), np.uint8), 16, tmp_path / "v.mp4", H264, None, note(request, "wan"))
    assert b"secret words" not in (tmp_path / "v.mp4").read_bytes()
    told = reproduce.read(tmp_path / "v.mp4")
    with pytest.raises(ClientError, match="give it with --prompt"):
        reproduce.request_of(told, {})
    with pytest.raises(ClientError, match="--prompt is 'other'"):
        reproduce.request_of(told, {"prompt": "other"})
    assert reproduce.request_of(told, {"prompt": "secret words"}) == request


def test_a_file_of_others_says_so(tmp_path):
    encode(np.zeros((5, 32, 32, 3), np.uint8), 16, tmp_path / "v.mp4")
    with pytest.raises(ClientError, match="says nothing of how it was made"):
        reproduce.read(tmp_path / "v.mp4")
