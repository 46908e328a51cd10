"""`python -m service.reproduce FILE`: makes the video of a file once more, from what is written in it, and compares.

MP4 and WebM files carry seed, model and parameters; the prompts only if the request said `embed_prompt`, else name them here,
as well as the pictures and clips that went with the request.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import httpx

from contract import arguments as arguments_of
from service import client, ffmpeg
from service.client import ClientError, say


def read(file: Path) -> dict:
    """The note in the file; ClientError if there is none."""
    try:
        text = ffmpeg.run(["-i", str(file), "-f", "ffmetadata", "-"]).decode()
    except OSError as error:
        raise ClientError(f"{file} cannot be read: {error}") from error
    # an ffmetadata file escapes = ; # \ and line ends with a backslash
    for line in text.replace("\\\n", "\n").splitlines():
        name, _, value = line.partition("=")
        if name.lower() == "comment":
            try:
                note = json.loads(_unescaped(value))
            except ValueError:
                break
            if isinstance(note, dict) and note.get("wan") == 1:
                return note
    raise ClientError(f"{file} says nothing of how it was made; MP4 and WebM files of this service do")


def _unescaped(text: str) -> str:
    plain, escaped = [], False
    for character in text:
        if character == "\\" and not escaped:
            escaped = True
        else:
            plain.append(character)
            escaped = False
    return "".join(plain)


def request_of(note: dict, prompts: dict[str, str | None]) -> dict:
    """The body that makes the video again; ClientError where a prompt is missing or is not the one."""
    body = dict(note["request"])
    for name, digest in note["sha256"].items():
        text = prompts.get(name) if prompts.get(name) is not None else body.get(name)
        option = f"--{name.replace('_', '-')}"
        if text is None:
            if digest == hashlib.sha256(b"").hexdigest():
                text = ""
            else:
                raise ClientError(f"the file has no {name}; give it with {option}")
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            raise ClientError(f"{option} is {text[:60]!r}; allowed: the text that made the file, to the letter")
        body[name] = text
    return body


def check_media(note: dict, media: dict[str, Path]) -> None:
    """ClientError where a picture or clip is missing or was not there."""
    wanted = note.get("media", [])
    if missing := [name for name in wanted if name not in media]:
        raise ClientError(
            f"the video was made with a file as {missing[0]}; give it with --{missing[0].replace('_', '-')}"
        )
    if extra := [name for name in media if name not in wanted]:
        raise ClientError(f"the video was made without --{extra[0].replace('_', '-')}; leave it out")


def frames_digest(file: Path) -> str:
    """Of all decoded pixels."""
    return ffmpeg.run(["-i", str(file), "-an", "-f", "md5", "-"]).decode().strip()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m service.reproduce", description=__doc__.split(": ", 1)[1])
    parser.add_argument("file", type=Path)
    parser.add_argument("--prompt", help="if the file does not tell it")
    parser.add_argument("--negative-prompt")
    arguments_of.add_media(parser)
    parser.add_argument("--show", action="store_true", help="print what the file tells and make nothing")
    parser.add_argument("--url", default=os.environ.get("WAN_URL", client.URL), help="of the service")
    parser.add_argument("--out", type=Path, help="keep the new video here")
    given = parser.parse_args(arguments)
    key = os.environ.get("WAN_API_KEY")
    try:
        note = read(given.file)
        if given.show:
            print(json.dumps(note, indent=1, ensure_ascii=False))
            return 0
        body = request_of(note, {"prompt": given.prompt, "negative_prompt": given.negative_prompt})
        media = arguments_of.given_media(given)
        check_media(note, media)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with (
            httpx.Client(base_url=given.url, headers=headers, timeout=30) as http,
            tempfile.TemporaryDirectory() as temporary,
        ):
            body |= {"model": note["model"], **note["file"]}
            job_id = client.post(http, body, media)
            out = client.fetch(http, client.watch(http, job_id), given.out or Path(temporary) / given.file.name)
            same = frames_digest(out) == frames_digest(given.file)
        say("the same video, pixel by pixel" if same else "another video: other weights, machine or release")
        return 0 if same else 1
    except KeyboardInterrupt:
        return 130
    except (ClientError, httpx.HTTPError) as error:
        say(f"error: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
