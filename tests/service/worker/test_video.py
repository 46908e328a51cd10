"""MP4 files, read back with ffmpeg."""

import imageio_ffmpeg
import numpy as np
import pytest

from service.worker.video import encode


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
