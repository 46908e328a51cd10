"""What a caller sent for a picture or a clip: a file, base64 in a data URL, or the address of one."""

import binascii
import re
import tempfile
from dataclasses import dataclass
from typing import BinaryIO

# `data:image/png;base64,` as it stands in JSON, which may escape the slash
DATA_URL = re.compile(rb"data:[\w.+-]*(?:\\?/[\w.+-]+)?(?:;[\w.+=-]+)*;base64,", re.IGNORECASE)
LONGEST_HEAD = 200  # bytes that decide whether a text is a data URL
BLANK = re.compile(rb"\\[nrt]|\s+")
ALLOWED = 'a file in a multipart form, "data:…;base64,…", or {"image_url": …} with either a data URL or an address'


@dataclass
class Upload:
    """A file that was received, on disk under no name: it is gone with the last handle. `broken`: what is wrong with it."""

    file: BinaryIO
    size: int = 0
    broken: str = ""

    @classmethod
    def new(cls) -> "Upload":
        return cls(tempfile.TemporaryFile())

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.size += len(data)

    def close(self) -> None:
        self.file.close()

    def __repr__(self) -> str:
        return f"a file of {self.size} bytes"


@dataclass(frozen=True)
class Remote:
    """A file that lies elsewhere."""

    url: str


Source = Upload | Remote


class Base64:
    """Decodes base64 that arrives in pieces, in a JSON string or in a form, into an Upload."""

    def __init__(self) -> None:
        self.upload = Upload.new()
        self._left = b""

    def feed(self, text: bytes) -> None:
        text = self._left + text
        if text.endswith(b"\\"):  # the escape continues in the next piece
            whole, self._left = text[:-1], b"\\"
        else:
            whole, self._left = text, b""
        whole = BLANK.sub(b"", whole.replace(b"\\/", b"/"))
        end = len(whole) // 4 * 4
        self._decode(whole[:end])
        self._left = whole[end:] + self._left

    def end(self) -> Upload:
        self._decode(self._left + b"=" * (-len(self._left) % 4))
        return self.upload

    def _decode(self, text: bytes) -> None:
        if self.upload.broken or not text:
            return
        try:
            self.upload.write(binascii.a2b_base64(text, strict_mode=True))
        except binascii.Error as error:
            self.upload.broken = f"base64 in full ({error})"


def source_of(value, depth: int = 2) -> Source | None:
    """The value of a body's field, which may stand in {"image_url": {"url": …}}, as a source; ValueError says what is allowed."""
    if value is None:
        return None
    if depth and isinstance(value, dict) and len(value) == 1 and set(value) <= {"image_url", "video_url", "url"}:
        return source_of(next(iter(value.values())), depth - 1)
    if isinstance(value, Upload):
        if value.broken:
            raise ValueError(value.broken)
        return value
    if isinstance(value, str) and len(value) <= 2048 and value.lower().startswith(("http://", "https://")):
        return Remote(value)
    raise ValueError(ALLOWED)
