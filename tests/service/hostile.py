"""Pictures and clips that mean no good."""

import struct
import zlib
from functools import cache

from tests.service import pictures


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
