"""What is kept of a picture or a clip: the right thing in a known format, or an error that names the field."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from service.errors import InvalidRequest
from service.media import files
from service.media.sent import Upload
from tests.service import pictures


def uploaded(data: bytes) -> Upload:
    upload = Upload.new()
    upload.write(data)
    return upload


def kept(data, tmp_path, most_pixels=1_000_000) -> Image.Image:
    made = files.picture("image", uploaded(data), tmp_path / "kept.png", most_pixels)
    image = Image.open(made.path)
    assert (image.format, image.mode, made.type) == ("PNG", "RGB", "image/png")
    assert image.size == (made.width, made.height)
    return image


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_picture_is_kept_as_png_with_its_colours(tmp_path, kind, mode):
    image = kept(pictures.picture(kind=kind, mode=mode, colour=200 if mode == "L" else (200, 10, 30)), tmp_path)
    wanted = (200, 200, 200) if mode == "L" else (200, 10, 30)
    assert np.abs(np.array(image.getpixel((5, 5))) - wanted).max() <= 3


def test_a_png_keeps_every_pixel(tmp_path):
    sent = pictures.noise()
    assert kept(sent, tmp_path).tobytes() == Image.open(io.BytesIO(sent)).tobytes()


def test_the_orientation_of_the_camera_is_applied_and_forgotten(tmp_path):
    photo = Image.new("RGB", (64, 32), "black")
    photo.paste("white", (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees to the right: what is left becomes top
    exif[0x010F] = "maker"
    image = kept(pictures.encoded(photo, "JPEG", exif=exif), tmp_path)
    assert image.size == (32, 64)
    assert image.getpixel((16, 5))[0] > 240 > 15 > image.getpixel((16, 60))[0]
    assert not image.getexif()
    assert not image.info


def test_what_is_transparent_is_white(tmp_path):
    assert kept(pictures.picture(mode="RGBA", colour=(255, 0, 0, 0)), tmp_path).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("RGBA", (32, 32), (255, 0, 0, 0)).quantize()
    assert kept(pictures.encoded(palette), tmp_path).getpixel((0, 0)) == (255, 255, 255)
    keyed = pictures.picture(colour=(9, 9, 9), transparency=(9, 9, 9))
    assert kept(keyed, tmp_path).getpixel((0, 0)) == (255, 255, 255)


def test_16_bits_become_8_and_cmyk_becomes_rgb(tmp_path):
    assert kept(pictures.picture(mode="I;16", colour=0xC0FF), tmp_path).getpixel((0, 0)) == (0xC0, 0xC0, 0xC0)
    red = kept(pictures.picture(mode="CMYK", colour=(0, 255, 255, 0), kind="JPEG"), tmp_path).getpixel((0, 0))
    assert red[0] > 240 > 15 > max(red[1:])


def test_a_colour_profile_is_applied_and_a_broken_one_does_not_matter(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    for profile in (lab, b"junk"):
        assert kept(pictures.picture(icc_profile=profile), tmp_path).info == {}


def test_a_photo_of_two_pictures_is_its_first(tmp_path):
    first, second = Image.new("RGB", (64, 48), "red"), Image.new("RGB", (64, 48), "blue")
    photo = pictures.encoded(first, "MPO", save_all=True, append_images=[second])
    assert kept(photo, tmp_path).getpixel((3, 3))[0] > 240


def test_a_large_picture_shrinks_to_what_a_video_can_show(tmp_path):
    image = kept(pictures.picture(6000, 3000), tmp_path, 20_000_000)
    assert image.size == (4096, 2048)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "another kind"),
        (b"not a picture, whatever its name is", "another kind"),
        (pictures.picture(kind="GIF"), "another kind"),
        (pictures.picture(kind="TIFF"), "another kind"),
        (pictures.noise()[:4000], "incomplete"),
        (pictures.noise(256, 256, "JPEG")[:4000], "incomplete"),
        (pictures.animation("PNG"), "animation"),
        (pictures.animation("WEBP"), "animation"),
        (pictures.picture(1, 1), "1x1"),
        (pictures.picture(20000, 1), "20000x1"),
        (pictures.picture(1600, 100), "8 times"),
        (pictures.picture(6000, 6000, 0, mode="1"), "at most 1000000 pixels"),
    ],
)
def test_what_is_no_usable_picture_is_refused_by_name(tmp_path, data, said):
    with pytest.raises(InvalidRequest, match="^last_image is .*allowed: .*") as error:
        files.picture("last_image", uploaded(data), tmp_path / "kept.png", 1_000_000)
    assert said in str(error.value)
    assert len(str(error.value)) < 300


def kept_clip(data, tmp_path, most_seconds=10, most_frames=100):
    return files.clip("video", uploaded(data), tmp_path / "kept.mp4", 1_000_000, most_seconds, most_frames)


def frames_of(path) -> int:
    import imageio_ffmpeg

    return imageio_ffmpeg.count_frames_and_secs(str(path))[0]


@pytest.mark.parametrize(
    "options", [("mp4",), ("mp4", "-c:v", "mpeg4"), ("webm", "-c:v", "libvpx-vp9"), ("mov", "-c:v", "prores")]
)
def test_a_clip_is_kept_frame_by_frame(tmp_path, options):
    made = kept_clip(pictures.clip(2, "64x48", 8, *options), tmp_path)
    assert (made.width, made.height, made.type) == (64, 48, "video/mp4")
    assert frames_of(made.path) == 16


def test_a_large_clip_shrinks_and_odd_sides_become_even(tmp_path):
    made = files.clip("video", uploaded(pictures.clip(1, "3000x601", 2)), tmp_path / "k.mp4", 3_000_000, 10, 100)
    assert made.width == 2048
    assert made.height % 2 == 0


PLAYLIST = b"#EXTM3U\n#EXTINF:10.0,\nhttp://127.0.0.1:1/x.ts\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (lambda: b"", "another kind"),
        (lambda: b"plain text" * 100, "another kind"),
        (lambda: PLAYLIST, "another kind"),
        (lambda: b"ffconcat version 1.0\nfile '/etc/hostname'\n", "another kind"),
        (lambda: pictures.picture(), "another kind"),
        (pictures.sound, "another kind"),
        (lambda: pictures.clip(3)[:3000], "broken"),
        (lambda: pictures.clip(3, "64x48", 8, "mp4", "-movflags", "+faststart")[:-2500], "broken"),
        (lambda: pictures.clip(3, "64x48", 8, "webm", "-c:v", "libvpx")[:-2500], "broken"),
        (lambda: pictures.clip(600, "64x48", 1), "more than 10 s"),
        (lambda: pictures.clip(9, "64x48", 30), "more than 100 frames"),
        (lambda: pictures.clip(1, "1600x900", 2), "too many pixels"),
        (lambda: pictures.clip(1, "400x4"), "400x4"),
    ],
)
def test_what_is_no_usable_clip_is_refused_by_name(tmp_path, data, said):
    with pytest.raises(InvalidRequest, match="^video is .*allowed: .*") as error:
        kept_clip(data(), tmp_path)
    assert said in str(error.value)


def test_a_reader_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PICTURE_SECONDS", 0.01)
    with pytest.raises(InvalidRequest, match="takes too much"):
        kept(pictures.picture(), tmp_path)
