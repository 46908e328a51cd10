"""JSON whose data URLs go to files while it arrives, so that no body with a picture is ever in memory whole."""

import json
import re
import secrets

from service.errors import BodyTooLarge, InvalidRequest
from service.media.sent import DATA_URL, LONGEST_HEAD, Base64, Upload

# A quote before `data:` begins a string unless it is escaped: what ends a string is followed by a colon, a comma or a bracket.
START = re.compile(rb'[^\\]"' + DATA_URL.pattern, re.IGNORECASE)
MOST_FILES = 8


class JsonText:
    """Takes the body piece by piece; each string that is a data URL becomes an Upload. At most `limit` bytes may remain."""

    def __init__(self, limit: int):
        self._limit, self._kept, self._rest = limit, bytearray(), b""
        self._base64: Base64 | None = None
        self._sign = secrets.token_hex(16)  # stands for the files; no caller can know it
        self.uploads: list[Upload] = []

    def feed(self, piece: bytes, last: bool = False) -> None:
        self._rest += piece
        while self._end_file(self._base64) if self._base64 else self._begin_file(last):
            pass

    def _begin_file(self, last: bool) -> bool:
        """Keep what comes before the next data URL; False when none has begun yet."""
        found = START.search(self._rest)
        if found is None:
            cut = len(self._rest) if last else max(0, len(self._rest) - LONGEST_HEAD)
            self._keep(cut)
            return False
        if len(self.uploads) == MOST_FILES:
            raise InvalidRequest("body", f"more than {MOST_FILES} data URLs", "a picture or clip for each field")
        self._keep(found.start() + 2)
        self._rest = self._rest[found.end() - found.start() - 2 :]
        self._kept += f"{self._sign}-{len(self.uploads)}".encode()
        self._base64 = Base64()
        self.uploads.append(self._base64.upload)
        return True

    def _end_file(self, file: Base64) -> bool:
        """Decode up to the quote that ends the data URL; False while it has not come."""
        text, quote, _ = self._rest.partition(b'"')
        file.feed(text)
        self._rest = self._rest[len(text) :]
        if not quote:
            return False
        file.end()
        self._base64 = None
        return True

    def _keep(self, count: int) -> None:
        self._kept += self._rest[:count]
        self._rest = self._rest[count:]
        if len(self._kept) > self._limit:
            raise BodyTooLarge(f"the body has more than {self._limit} bytes beside files; allowed: {self._limit}")

    def values(self) -> dict:
        """The object, with an Upload where a data URL was."""
        self.feed(b"", last=True)
        return {name: self._filled(value) for name, value in parsed(bytes(self._kept)).items()}

    def _filled(self, value, depth: int = 4):
        """A value, or what [{"image_url": {"url": …}}] holds, with files for their signs."""
        if isinstance(value, list) and depth:
            return [self._filled(inner, depth - 1) for inner in value]
        if isinstance(value, dict) and depth:
            return {name: self._filled(inner, depth - 1) for name, inner in value.items()}
        if isinstance(value, str) and value.startswith(f"{self._sign}-"):
            return self.uploads[int(value.removeprefix(f"{self._sign}-"))]
        return value

    def close(self) -> None:
        for upload in self.uploads:
            upload.close()


def parsed(body: bytes) -> dict:
    """A JSON object; InvalidRequest for anything else."""
    try:
        values = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InvalidRequest("body", body[:60].decode(errors="replace"), "valid JSON") from None
    if not isinstance(values, dict):
        raise InvalidRequest("body", values, "a JSON object")
    return values


def _no_constant(name: str):
    raise ValueError(f"{name} is not JSON")
