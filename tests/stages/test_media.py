import io
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from contract import InvalidRequest, ModelCard
from stages.media import GivenMedia, checked_hashes, clip_frames, picture, video_size
from tests.stages.requests import Request

I2V = ModelCard.from_dict({"variant": "i2v"}, "here")
T2V = ModelCard.from_dict({"variant": "t2v"}, "here")
LIMIT = 1 << 20


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def plain(size=(6, 4), colour=(200, 10, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


def clip(frames: int, size=(32, 16)) -> bytes:
    """An MP4 whose frames become brighter."""
    pixels = b"".join(np.full((size[1], size[0], 3), 10 * i, np.uint8).tobytes() for i in range(frames))
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", "16", "-i", "-"]
    made = [
        "-vcodec",
        "libx264",
        "-pix_fmt",
        "yuv444p",
        "-qp",
        "0",
        "-movflags",
        "frag_keyframe+empty_moov",
        "-f",
        "mp4",
        "-",
    ]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, *made]
    return subprocess.run(command, input=pixels, capture_output=True, check=True).stdout


def file(data: bytes) -> np.ndarray:
    return np.array([data], np.object_)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_becomes_rgb(kind):
    found = picture("IMAGE", encoded(plain(), kind))
    assert (found.mode, found.size) == ("RGB", (6, 4))
    assert np.abs(np.asarray(found).astype(int) - (200, 10, 30)).max() < 12


def test_exif_says_how_a_picture_is_turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert picture("IMAGE", encoded(plain(), "JPEG", exif=exif)).size == (4, 6)


def test_what_is_transparent_is_white():
    clear = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    assert picture("IMAGE", encoded(clear)).getpixel((0, 0)) == (255, 255, 255)
    assert picture("IMAGE", encoded(Image.new("LA", (6, 4), (0, 0)))).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_of_grey_and_cmyk_keep_their_brightness():
    grey = Image.fromarray(np.full((4, 6), 0x8000, np.uint16))
    assert picture("IMAGE", encoded(grey)).getpixel((0, 0)) == (128, 128, 128)
    cyan = picture("IMAGE", encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG")).getpixel((4, 4))
    assert cyan[0] < 40 < cyan[2]


def animated() -> bytes:
    return encoded(plain(), "WEBP", save_all=True, append_images=[plain(colour=(1, 2, 3))])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "IMAGE is '0 bytes'; allowed: 1 to"),
        (b"no picture at all", "IMAGE is '17 bytes'; allowed: a whole PNG, JPEG, WEBP file"),
        (encoded(plain((64, 64)), "JPEG")[:400], "a whole PNG, JPEG, WEBP file"),
        (encoded(plain(), "GIF"), "a whole PNG, JPEG, WEBP file"),
        (animated(), "IMAGE is '2 frames'; allowed: a still picture"),
        (encoded(Image.new("1", (20000, 1))), "IMAGE is '20000x1'; allowed: at most"),
        (encoded(Image.new("1", (9000, 9000))), "IMAGE is '9000x9000'; allowed: at most 50000000 pixels"),
        (bytes(LIMIT + 1), "allowed: 1 to 1048576 bytes"),
    ],
    ids=["empty", "text", "cut off", "gif", "animated", "a line", "a bomb", "large"],
)
def test_what_is_no_sound_picture_is_refused_by_name(data, message):
    with pytest.raises(InvalidRequest, match=message):
        GivenMedia.of(Request({"IMAGE": file(data)}), I2V, LIMIT).check()


def test_one_pixel_is_a_picture():
    assert picture("IMAGE", encoded(plain((1, 1)))).size == (1, 1)


def test_of_a_clip_the_first_frames_are_read_or_the_last():
    data = clip(12)
    first = clip_frames("VIDEO", data, (32, 16, 9))
    assert first.shape == (9, 16, 32, 3)
    assert np.abs(first[:, 0, 0, 0].astype(int) - 10 * np.arange(9)).max() <= 2
    last = clip_frames("VIDEO", data, (32, 16, 9), last=5)
    assert np.abs(last[:, 0, 0, 0].astype(int) - 10 * np.arange(7, 12)).max() <= 2
    assert clip_frames("VIDEO", data, (48, 48, 1)).shape == (1, 48, 48, 3)


@pytest.mark.parametrize(
    "data", [b"text", clip(3)[:200], b"\x1aE\xdf\xa3" + bytes(50)], ids=["text", "cut off", "empty"]
)
def test_what_is_no_clip_is_refused_by_name(data):
    with pytest.raises(InvalidRequest, match="VIDEO is '.* bytes'; allowed: an MP4 or WebM file"):
        clip_frames("VIDEO", data, (32, 16, 5))


def test_media_that_the_model_does_not_take_or_lacks_are_refused_by_tensor():
    with pytest.raises(InvalidRequest, match="IMAGE is None; allowed: a file"):
        GivenMedia.of(Request({}), I2V, LIMIT)
    with pytest.raises(InvalidRequest, match="IMAGE is 'given'; allowed: with this model: video"):
        GivenMedia.of(Request({"IMAGE": file(b"x")}), T2V, LIMIT)
    with pytest.raises(InvalidRequest, match=r"IMAGE is 'float32 \[1\]'; allowed: one file, shape \[1\]"):
        GivenMedia.of(Request({"IMAGE": np.zeros(1, np.float32)}), I2V, LIMIT)


def test_known_frames_come_from_pictures_and_from_plain_frames():
    size = (32, 16, 9)
    both = {"IMAGE": file(encoded(plain())), "LAST_IMAGE": file(encoded(plain(colour=(0, 0, 0))))}
    known = GivenMedia.of(Request(both), I2V, LIMIT).known(size)
    assert {i: tuple(frame[0, 0]) for i, frame in known.items()} == {0: (200, 10, 30), 8: (0, 0, 0)}
    frames = np.stack([np.full((16, 32, 3), i, np.uint8) for i in range(7)])
    known = GivenMedia.of(Request({"VIDEO_FRAMES": frames}), I2V, LIMIT).known(size)
    assert [int(known[i][0, 0, 0]) for i in sorted(known)] == [2, 3, 4, 5, 6]


def test_the_hashes_say_which_media_were_given():
    def hashes(**tensors):
        return GivenMedia.of(Request(tensors), I2V, LIMIT).hashes

    one, other = file(encoded(plain())), file(encoded(plain(colour=(1, 1, 1))))
    assert hashes(IMAGE=one) == hashes(IMAGE=one) != hashes(IMAGE=other)
    assert checked_hashes(hashes(IMAGE=one, LAST_IMAGE=other), I2V).keys() == {"image", "last_image"}
    for wrong in ({"image": "abc"}, {"clip": "0" * 64}, [], {"image": 1}):
        with pytest.raises(ValueError, match="media"):
            checked_hashes(wrong, I2V)


def test_the_size_of_the_video_is_checked():
    assert video_size(Request({"SIZE": np.array([64, 32, 9], np.int32)}), I2V) == (64, 32, 9)
    with pytest.raises(InvalidRequest, match="width is 63"):
        video_size(Request({"SIZE": np.array([63, 32, 9], np.int32)}), I2V)
