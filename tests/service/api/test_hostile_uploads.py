"""150 uploads that mean no good: as many clear errors, and a gateway that serves as before."""

import base64
import io
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from PIL import Image

from tests.service import pictures
from tests.service.hostile import hostile_clips, hostile_pictures, png
from tests.service.running import gateway, wait_for, worker

FAST = {"prompt": "p", "steps": "1", "size": "32x32", "num_frames": "5"}
MOST_GROWTH = 60 * 2**20


def broken_fields() -> list:
    """Values of `image` in JSON."""
    url = pictures.data_url(pictures.picture())
    return [
        5, True, [], [url], {}, {"image_url": 5}, {"image_url": url, "more": 1}, {"file": url}, "", "photo.png", "/etc/passwd",
        "file:///etc/passwd", "http://127.0.0.1/x.png", "https://example.com/x.png", "ftp://example.com/x", "data:", "data:,hello",
        "data:image/png,hello", "data:image/png;base64,", "data:image/png;base64,!!!!", "data:image/png;base64,AAAA",
        url[: len(url) // 2], url[:200] + "=" + url[200:], url + "====", "data:text/plain;base64," + base64.b64encode(b"hello").decode(),
        {"image_url": {"url": {"url": {"url": url}}}}, {"image_url": "javascript:alert(1)"}, {"image_url": "data:image/svg+xml;utf8,<svg/>"},
    ]  # fmt: skip


def attacks():
    """(what to send) for each; more than 150."""
    sends = [{"data": FAST, "files": {"image": ("photo.png", data, "image/png")}} for data in hostile_pictures()]
    sends += [{"data": FAST, "files": {"video": ("clip.mp4", data, "video/mp4")}} for data in hostile_clips()]
    sends += [{"json": FAST | {"image": value}} for value in broken_fields()]
    sends += [{"json": FAST | {"last_image": pictures.data_url(data)}} for data in hostile_pictures()[:25]]
    sends += [{"data": FAST, "files": [("image", pictures.picture()), ("image", pictures.picture())]}]
    sends += [{"data": FAST, "files": {"image": pictures.picture(), "input_reference": pictures.picture()}}]
    sends += [{"data": FAST, "files": {f"f{number}": b"x" for number in range(20)}}]
    sends += [{"data": FAST, "files": {"prompt": b"x"}}, {"data": FAST, "files": {"../../etc": b"x"}}]
    sends += [{"data": FAST, "files": {"image": bytes(3_000_000)}}]
    return sends


def refused(client, send) -> None:
    """Send it; the answer must be an error that a caller can read."""
    answer = client.post("/v1/videos", **send)
    where = f"{str(send)[:300]}: {answer.status_code} {answer.text[:300]}"
    assert answer.status_code in (400, 413), where
    error = answer.json()["error"]
    assert 0 < len(error["message"]) < 500, where
    assert "unexpected" not in error["message"], where
    assert error["param"] or answer.status_code == 413, where


@pytest.mark.timeout(600)
def test_150_hostile_uploads_get_clear_errors_and_leave_nothing(tmp_path):
    settings = pictures.settings_with_media(
        tmp_path, "image", "last_image", "video", max_image_bytes=2_000_000, max_clip_bytes=2_000_000,
        max_image_pixels=2_000_000, max_clip_pixels=2_000_000, max_clip_seconds=10, max_clip_frames=600,
    )  # fmt: skip
    sends = attacks()
    assert len(sends) >= 150
    with gateway(settings) as url, worker(settings), httpx.Client(base_url=url, timeout=120) as client:
        process = psutil.Process()
        for send in sends[:20]:
            refused(client, send)
        # what is imported once, and the buffers of the first requests, are there
        memory, handles = process.memory_info().rss, process.num_fds()
        with ThreadPoolExecutor(4) as callers:
            list(callers.map(lambda send: refused(client, send), sends[20:]))
        assert process.memory_info().rss - memory < MOST_GROWTH
        assert process.num_fds() <= handles + 20
        assert [
            child for child in process.children(recursive=True) if "read_picture" in " ".join(child.cmdline())
        ] == []
        assert list((tmp_path / "videos").iterdir()) == [] if (tmp_path / "videos").exists() else True
        began = time.monotonic()
        made = client.post("/v1/videos", data=FAST, files={"image": pictures.picture()}).json()
        assert wait_for(client, made["id"])["status"] == "completed"
        assert time.monotonic() - began < 20


def test_a_picture_that_lies_about_its_size_is_not_decoded(tmp_path):
    """The header is looked at before memory is taken."""
    from service.errors import InvalidRequest
    from service.media import files
    from service.media.sent import Upload

    upload = Upload.new()
    upload.write(png(60000, 60000, zlib.compress(bytes(20_000_000))))
    with pytest.raises(InvalidRequest, match="60000x60000 pixels"):
        files.picture("image", upload, tmp_path / "x.png", 10**6)
    assert Image.open(io.BytesIO(pictures.picture())).size == (64, 48)
