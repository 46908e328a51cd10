"""Multipart forms whose files, and data URLs in text fields, go to disk while they arrive."""

from typing import Any

from python_multipart import multipart

from service.api.json_text import MOST_FILES
from service.errors import BodyTooLarge, InvalidRequest
from service.media.sent import DATA_URL, LONGEST_HEAD, Base64, Upload

MOST_FIELDS = 64


class _Text:
    """A text field; one that begins as a data URL becomes a file."""

    def __init__(self) -> None:
        self.text, self._decided = b"", False
        self._base64: Base64 | None = None

    @property
    def upload(self) -> Upload | None:
        return self._base64.upload if self._base64 else None

    def feed(self, piece: bytes) -> None:
        if self._base64 is not None:
            self._base64.feed(piece)
            return
        self.text += piece
        if not self._decided and len(self.text) >= LONGEST_HEAD:
            self._decide()

    def _decide(self) -> None:
        self._decided = True
        if found := DATA_URL.match(self.text):
            self._base64 = Base64()
            self._base64.feed(self.text[found.end() :])
            self.text = b""

    def end(self) -> str | Upload:
        if not self._decided:
            self._decide()
        if self._base64 is not None:
            return self._base64.end()
        try:
            return self.text.decode()
        except UnicodeDecodeError:
            raise InvalidRequest("body", "…", "a form in UTF-8") from None


class Form:
    """Takes the body piece by piece; `limit` bounds the text of all fields together."""

    def __init__(self, content_type: bytes, limit: int):
        _, options = multipart.parse_options_header(content_type)
        if not options.get(b"boundary"):
            raise InvalidRequest("body", "…", "a valid form (Missing boundary in multipart.)")
        callbacks: Any = {name: getattr(self, f"_{name}") for name in (
            "on_part_begin", "on_part_data", "on_part_end", "on_header_field", "on_header_value", "on_header_end",
            "on_headers_finished", "on_end")}  # fmt: skip
        self._parser = multipart.MultipartParser(options[b"boundary"], callbacks)
        self._limit, self._text_bytes, self._ended = limit, 0, False
        self._fields: list[tuple[str, str | Upload]] = []
        self.uploads: list[Upload] = []
        self._part: _Text | Upload = _Text()

    def feed(self, piece: bytes) -> None:
        try:
            self._parser.write(piece)
        except multipart.MultipartParseError as error:
            raise InvalidRequest("body", "…", f"a valid form ({str(error)[:100]})") from None

    def values(self) -> dict:
        """The fields; `name[image_url]` is {"image_url": …} of the field `name`, as the OpenAI client sends it."""
        if not self._ended:
            raise InvalidRequest("body", "…", "a form that is complete")
        values: dict = {}
        for name, value in self._fields:
            outer, _, inner = name.partition("[")
            nested = inner.endswith("]")
            name = outer if nested else name
            if name in values:
                raise InvalidRequest(name, "several values", "one value")
            values[name] = {inner[:-1]: value} if nested else value
        return values

    def close(self) -> None:
        for upload in self.uploads:
            upload.close()

    def _on_part_begin(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._header = [b"", b""]

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = [b"", b""]

    def _on_headers_finished(self) -> None:
        _, options = multipart.parse_options_header(self._headers.get(b"content-disposition", b""))
        if b"name" not in options:
            raise InvalidRequest("body", "…", "a valid form, in which every part has a name")
        self._name = options[b"name"].decode(errors="replace")
        if len(self._fields) == MOST_FIELDS:
            raise InvalidRequest("body", f"more than {MOST_FIELDS} fields", f"at most {MOST_FIELDS}")
        self._part = self._new_file() if b"filename" in options else _Text()

    def _new_file(self) -> Upload:
        if len(self.uploads) == MOST_FILES:
            raise InvalidRequest("body", f"more than {MOST_FILES} files", "a picture or clip for each field")
        self.uploads.append(Upload.new())
        return self.uploads[-1]

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if isinstance(self._part, Upload):
            self._part.write(data[start:end])
            return
        before = self._part.upload
        self._part.feed(data[start:end])
        if self._part.upload is None:
            self._text_bytes += end - start
        elif before is None:
            self._adopt(self._part.upload)
        if self._text_bytes > self._limit:
            raise BodyTooLarge(f"the form has more than {self._limit} bytes beside files; allowed: {self._limit}")

    def _adopt(self, upload: Upload) -> None:
        self.uploads.append(upload)
        if len(self.uploads) > MOST_FILES:
            raise InvalidRequest("body", f"more than {MOST_FILES} files", "a picture or clip for each field")

    def _on_part_end(self) -> None:
        if isinstance(self._part, Upload):
            self._fields.append((self._name, self._part))
            return
        known, value = self._part.upload, self._part.end()
        if isinstance(value, Upload) and known is None:
            self._adopt(value)
        self._fields.append((self._name, value))

    def _on_end(self) -> None:
        self._ended = True
