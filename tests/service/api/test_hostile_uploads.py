"""150 uploads that mean no good: as many clear errors, and a gateway that serves as before."""

import base64
import io
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import httpx
import psutil
import pytest
from PIL import Image

from tests.service import pictures
from tests.service.running import gateway, wait_for, worker

FAST = {"prompt": "p", "steps": "1", "size": "32x32", "num_frames": "5"}
MOST_GROWTH = 60 * 2**20


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, *more: bytes, bits: int = 8, colour: int = 2) -> bytes:
    """A PNG that says what it likes of itself."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = b"".join([chunk(b"IHDR", head), *more, chunk(b"IDAT", data), chunk(b"IEND", b"")])
    return b"\x89PNG\r\n\x1a\n" + body


@cache
def hostile_pictures() -> list[bytes]:
    good = {kind: pictures.noise(64, 64, kind) for kind in ("PNG", "JPEG", "WEBP")}
    bomb = zlib.compress(bytes(5_000_000))
    files = [
        b"", b"\0", b"hello", b"\xff" * 5000, b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        b"#!/bin/sh\necho no", b"%PDF-1.4", b"PK\x03\x04" + bytes(100), b"GIF89a" + bytes(20), b"BM" + bytes(60),
        pictures.picture(kind="GIF"), pictures.picture(kind="TIFF"), pictures.picture(kind="BMP"), pictures.picture(kind="ICO"),
        pictures.animation("PNG"), pictures.animation("WEBP"), pictures.animation("GIF"),
        pictures.picture(1, 1), pictures.picture(20000, 1), pictures.picture(1, 20000), pictures.picture(15, 64),
        png(30000, 30000, bomb, bits=1, colour=0), pictures.picture(9000, 9000, 0, mode="L", kind="JPEG"),
        png(2**31 - 1, 2**31 - 1, b""), png(0, 0, b""), png(60000, 60000, bomb), png(1000, 1000, b""), png(1000, 1000, b"junk"),
        png(64, 64, bomb[:12]), png(64, 64, zlib.compress(b"")), png(64, 64, zlib.compress(bytes(9)), bits=7),
        png(64, 64, b"", chunk(b"zTXt", b"k\0\0" + bomb)), png(64, 64, b"", chunk(b"iCCP", b"k\0\0" + bomb)),
        png(64, 64, b"", chunk(b"tEXt", bytes(10**6))), b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n" + bytes(100), b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        b"\xff\xd8\xff", b"\xff\xd8\xff\xe0" + bytes(300), b"\0\0\0 ftypavif" + bytes(300), b"\0\0\0 ftypheic" + bytes(300),
    ]  # fmt: skip
    for data in good.values():
        files += [data[: len(data) * part // 10] for part in range(1, 10)]
        files.append(data[::-1])
    # not of WebP, to which no bytes are wrong
    return files + [good[kind][:40] + bytes(len(good[kind]) - 40) for kind in ("PNG", "JPEG")]


def hostile_clips() -> list[bytes]:
    good = {"mp4": pictures.clip(2), "webm": pictures.clip(2, "64x48", 8, "webm", "-c:v", "libvpx")}
    files = [
        b"", b"clip", bytes(10_000), b"\0\0\0\x18ftypisom" + bytes(100), b"\x1aE\xdf\xa3" + bytes(200), pictures.sound(),
        pictures.picture(), pictures.animation("GIF"), pictures.clip(600, "16x16", 1), pictures.clip(1, "1600x1300", 1),
        pictures.clip(40, "16x16", 60), b"#EXTM3U\n#EXTINF:1,\nhttp://169.254.169.254/latest\n", b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"RIFF\0\0\0\0AVI LIST", b"FLV\x01\x05" + bytes(100), pictures.clip(1, "64x48", 8, "avi"), pictures.clip(1, "64x48", 8, "gif"),
    ]  # fmt: skip
    for data in good.values():
        files += [data[: len(data) * part // 6] for part in range(1, 6)] + [data[::-1], data[:64] + bytes(3000)]
    return files


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
