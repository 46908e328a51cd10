"""`python -m service.client "a prompt" --out x.mp4`: a video from a running service, with a progress bar.

Ctrl-C asks whether to cancel the job; one that goes on is fetched later with --resume ID. The API key is WAN_API_KEY.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path

import httpx

from contract import arguments as arguments_of
from service.formats import BY_SUFFIX

BAR = 30
OVER = ("completed", "failed", "cancelled")
URL = "http://127.0.0.1:3000"
PAUSE_SECONDS = 1.0  # before looking again at a service that is away
AWAY_SECONDS = 300.0  # how long that is tried
UPLOAD_SECONDS = 300.0


class ClientError(Exception):
    """What the service answered, or that it does not, in one sentence."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    about = __doc__.split(": ", 1)[1]
    parser = argparse.ArgumentParser(prog="python -m service.client", description=about)
    parser.add_argument("prompt", nargs="?", help="what the video shows")
    parser.add_argument("--url", default=os.environ.get("WAN_URL", URL), help=f"of the service; WAN_URL or {URL}")
    parser.add_argument(
        "--out", type=video_path, help="where to write the video; its ending says the format; default: ID.mp4"
    )
    parser.add_argument("--resume", metavar="ID", help="go on waiting for an earlier job and fetch its video")
    arguments_of.add_media(parser)
    arguments_of.add(parser, without=("prompt",))
    given = parser.parse_args(arguments)
    if bool(given.prompt) == bool(given.resume):
        parser.error("a prompt, or --resume ID")
    return given


def video_path(text: str) -> Path:
    """Of a video to write, for argparse."""
    if (path := Path(text)).suffix.removeprefix(".") not in BY_SUFFIX:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a name that ends with .{', .'.join(BY_SUFFIX)}")
    return path


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def draw(video: dict, started: float) -> None:
    """One line: a bar for the steps, or what is being done."""
    step, steps = video["step"], video["steps"]
    full = BAR * step // steps if steps else 0
    eta = f", {video['eta_seconds']:.0f} s left" if video.get("eta_seconds") else ""
    place = f", place {video['queue_position']} in the queue" if video.get("queue_position") else ""
    phase = video["phase"] or video["status"]
    line = (
        f"[{'#' * full}{'.' * (BAR - full)}] step {step}/{steps} {phase}{place} {time.monotonic() - started:.1f} s{eta}"
    )
    end = "" if sys.stderr.isatty() else "\n"
    start = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(start + line, end=end, file=sys.stderr, flush=True)


def answered(answer: httpx.Response) -> httpx.Response:
    """The answer, if it is one; ClientError with the service's own words otherwise."""
    if answer.status_code < 400:
        return answer
    answer.read()
    with contextlib.suppress(ValueError, KeyError, TypeError):
        raise ClientError(answer.json()["error"]["message"])
    raise ClientError(f"{answer.url} answered with status {answer.status_code}")


def watch(client: httpx.Client, job_id: str) -> dict:
    """Follow the events until the job is over; a service that is away for a while is asked again."""
    started = heard = time.monotonic()
    while True:
        try:
            with client.stream("GET", f"/v1/videos/{job_id}/events", timeout=60) as events:
                for line in answered(events).iter_lines():
                    heard = time.monotonic()
                    if line.startswith("data: "):
                        video = json.loads(line[6:])
                        draw(video, started)
                        if video["status"] in OVER:
                            if sys.stderr.isatty():
                                say("")
                            return video
        except httpx.TransportError as error:
            if time.monotonic() - heard > AWAY_SECONDS:
                raise ClientError(f"the service has not answered for {AWAY_SECONDS:g} s: {error}") from error
        time.sleep(PAUSE_SECONDS)


def submit(client: httpx.Client, given: argparse.Namespace) -> str:
    """The id of the new job; a video takes the shape of its picture unless a size was asked for."""
    body, media = arguments_of.given(given), arguments_of.given_media(given)
    if given.out:
        body["output_format"] = BY_SUFFIX[given.out.suffix.removeprefix(".")].name
    if media and not {"width", "height"} & body.keys():
        body["size"] = "auto"
    return post(client, body, media)


def post(client: httpx.Client, body: dict, media: dict[str, Path]) -> str:
    """The id of the new job; with pictures and clips the body is a form."""
    if not media:
        return answered(client.post("/v1/videos", json=body)).json()["id"]
    with contextlib.ExitStack() as opened:
        try:
            files = {name: (path.name, opened.enter_context(path.open("rb"))) for name, path in media.items()}
        except OSError as error:
            raise ClientError(f"{error.filename}: {error.strerror}") from error
        form = {name: json.dumps(value) if isinstance(value, list) else value for name, value in body.items()}
        return answered(client.post("/v1/videos", data=form, files=files, timeout=UPLOAD_SECONDS)).json()["id"]


def fetch(client: httpx.Client, video: dict, out: Path | None) -> Path:
    """Write the file; it appears under its name only when complete."""
    if video["status"] != "completed":
        raise ClientError(f"the job {video['status']}: {(video['error'] or {}).get('message', 'on request')}")
    target = out or Path(video["file_name"])
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.part")
    with client.stream("GET", video["url"], timeout=600) as answer, partial.open("wb") as file:
        for piece in answered(answer).iter_bytes():
            file.write(piece)
    partial.rename(target)
    return target


def interrupted(client: httpx.Client, job_id: str, given: argparse.Namespace) -> None:
    """Ctrl-C: cancel if the user says so, else tell how to come back."""
    say("")
    with contextlib.suppress(EOFError, KeyboardInterrupt, httpx.HTTPError, ClientError):
        if sys.stdin.isatty():
            print("Cancel the job? [y/N] ", end="", file=sys.stderr, flush=True)
            if input().strip().lower() in ("y", "yes"):
                answered(client.post(f"/v1/videos/{job_id}/cancel"))
                say("cancelled")
                return
    say(f"the job goes on; fetch it with: python -m service.client --resume {job_id} --url {given.url}")


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    key = os.environ.get("WAN_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=given.url, headers=headers, timeout=30) as client:
            job_id = given.resume or submit(client, given)
            say(f"job {job_id}")
            try:
                video = watch(client, job_id)
            except KeyboardInterrupt:
                interrupted(client, job_id, given)
                return 130
            out = fetch(client, video, given.out)
        say(f"{video['size']}, {video['seconds']} s, seed {video['seed']}")
        print(out, flush=True)
        return 0
    except KeyboardInterrupt:
        return 130
    except (ClientError, httpx.HTTPError, httpx.InvalidURL) as error:
        say(f"error: {error or type(error).__name__}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
