"""Bodies that arrive in pieces of any size: the same fields, with files on disk instead of in memory."""

import base64
import json
import random

import pytest

from service.api.json_text import JsonText
from service.api.multipart import Form
from service.errors import BodyTooLarge, InvalidRequest
from service.media.sent import Upload

DATA = bytes(random.Random(7).randbytes(5000))
URL = f"data:image/png;base64,{base64.b64encode(DATA).decode()}"


def held(value):
    """The bytes of files, and everything else as it is."""
    if isinstance(value, dict):
        return {name: held(inner) for name, inner in value.items()}
    if not isinstance(value, Upload):
        return value
    assert not value.broken
    value.file.seek(0)
    return value.file.read()


def read(reader, body: bytes, size: int) -> dict:
    for start in range(0, len(body), size):
        reader.feed(body[start : start + size])
    return {name: held(value) for name, value in reader.values().items()}


@pytest.mark.parametrize("size", [1, 7, 100, 4096, 10**6])
@pytest.mark.parametrize("escaped", [False, True])
def test_data_urls_in_json_become_files_whatever_the_pieces(size, escaped):
    said = {"prompt": 'he said "data:image/png;base64,AAAA" \\ and \\"left', "image": URL, "steps": 3,
            "last_image": {"image_url": {"url": URL}}, "user": "data: none", "data:image/png;base64,": "x"}  # fmt: skip
    body = json.dumps(said)
    if escaped:  # as PHP writes it
        body = body.replace("/", "\\/")
    values = read(JsonText(10_000), body.encode(), size)
    assert values.pop("image") == DATA
    assert values.pop("last_image") == {"image_url": {"url": DATA}}
    assert values.pop("prompt") == said["prompt"]
    assert values["user"] == "data: none"


@pytest.mark.parametrize("url", [URL[:-3] + "!!!", URL + "AAAA=AAAA", "data:image/png;base64,A"])
def test_broken_base64_is_known_as_such(url):
    reader = JsonText(10_000)
    reader.feed(('{"image": "' + url + '"}').encode())
    assert all("base64" in upload.broken for upload in reader.uploads)
    assert reader.uploads


def test_text_is_bounded_and_files_are_not_counted_as_text():
    reader = JsonText(1000)
    reader.feed(json.dumps({"image": URL}).encode())
    with pytest.raises(BodyTooLarge):
        reader.feed(b" " * 2000)
    form = Form(b"multipart/form-data; boundary=x", 1000)
    form.feed(part("image", URL.encode()))
    with pytest.raises(BodyTooLarge):
        form.feed(part("prompt", b"x" * 2000))


def test_no_request_holds_more_than_a_few_files_open():
    with pytest.raises(InvalidRequest, match="more than 8"):
        JsonText(10**6).feed(json.dumps({str(n): "data:image/png;base64,AAAA" for n in range(1000)}).encode())
    form = Form(b"multipart/form-data; boundary=x", 1000)
    with pytest.raises(InvalidRequest, match="more than 8"):
        form.feed(b"".join(part(f"f{n}", b"x", 'filename="a.png"') for n in range(60)))
    form = Form(b"multipart/form-data; boundary=x", 1000)
    with pytest.raises(InvalidRequest, match="more than 8"):
        form.feed(b"".join(part(f"f{n}", b"data:image/png;base64,AAAA") for n in range(60)))


def part(name: str, data: bytes, *more: str) -> bytes:
    about = "; ".join(['Content-Disposition: form-data; name="' + name + '"', *more])
    return f"--x\r\n{about}\r\n\r\n".encode() + data + b"\r\n"


@pytest.mark.parametrize("size", [1, 7, 100, 4096, 10**6])
def test_files_and_data_urls_in_a_form_become_files_whatever_the_pieces(size):
    body = part("prompt", b"a picture") + part("image", DATA, 'filename="a.png"')
    body += (
        part("last_image[image_url]", URL.encode())
        + part("user", b"data:")
        + part("video", URL.encode())
        + b"--x--\r\n"
    )
    values = read(Form(b"multipart/form-data; boundary=x", 10_000), body, size)
    assert values == {
        "prompt": "a picture", "image": DATA, "last_image": {"image_url": DATA}, "user": "data:", "video": DATA,
    }  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--x\r\n",
        b"--y--\r\n",
        part("prompt", b"x"),  # the end is missing
        part("a", b"\xff\xfe") + b"--x--\r\n",
        part("a", b"1") + part("a", b"2") + b"--x--\r\n",
        b"--x\r\nContent-Disposition: form-data\r\n\r\nx\r\n--x--\r\n",
        b"".join(part(f"f{n}", b"") for n in range(100)) + b"--x--\r\n",
    ],
)
def test_a_broken_form_is_refused(body):
    with pytest.raises(InvalidRequest):
        read(Form(b"multipart/form-data; boundary=x", 10_000), body, 100)
