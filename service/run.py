"""`python -m service.run --prompt TEXT`: starts everything, makes one video over HTTP, stops everything."""

import argparse
import json
import sys
import time
from pathlib import Path

import httpx

from contract import arguments as arguments_of
from service import options
from service.errors import SettingsError
from service.launcher.server import TritonServerError
from service.stack import Stack, StackError, check_settings, exported

BAR = 28


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m service.run", description=__doc__.split(": ", 1)[1])
    parser.add_argument("--out", type=Path, help="where to write the MP4; default: in the state directory")
    arguments_of.add(parser, required=("prompt",))
    options.add(parser)
    return parser.parse_args(arguments)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def draw(video: dict, started: float) -> None:
    """One line: a bar for the steps, or what is being done."""
    step, steps = video["step"], video["steps"]
    full = BAR * step // steps if steps else 0
    eta = f", {video['eta_seconds']:.0f} s left" if video.get("eta_seconds") else ""
    phase = video["phase"] or video["status"]
    line = f"[{'#' * full}{'.' * (BAR - full)}] step {step}/{steps} {phase} {time.monotonic() - started:.1f} s{eta}"
    end = "" if sys.stderr.isatty() else "\n"
    start = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(start + line, end=end, file=sys.stderr, flush=True)


def watch(client: httpx.Client, job_id: str) -> dict:
    """Follow the events until the job is over."""
    started = time.monotonic()
    while True:
        with client.stream("GET", f"/v1/videos/{job_id}/events", timeout=60) as events:
            for line in events.iter_lines():
                if not line.startswith("data: "):
                    continue
                video = json.loads(line[6:])
                draw(video, started)
                if video["status"] in ("completed", "failed", "cancelled"):
                    if sys.stderr.isatty():
                        say("")
                    return video


def generate(url: str, choice: argparse.Namespace) -> Path:
    """Submit, watch, download."""
    body = arguments_of.given(choice)
    with httpx.Client(base_url=url, timeout=30) as client:
        answer = client.post("/v1/videos", json=body)
        if answer.status_code != 200:
            raise StackError(answer.json()["error"]["message"])
        video = watch(client, answer.json()["id"])
        if video["status"] != "completed":
            raise StackError(f"the job {video['status']}: {(video['error'] or {}).get('message', '')}")
        out = choice.out or choice.state / f"{video['id']}.mp4"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(client.get(video["url"]).raise_for_status().content)
    say(
        f"{video['size']}, {video['num_frames']} frames, seed {video['seed']}, {video['inference_time_s']:.1f} s in Triton"
    )
    return out


def main(arguments: list[str] | None = None) -> int:
    choice = parse(arguments)
    try:
        check_settings()
        exported(choice.repository, choice.checkpoint, say, choice.target)
        options.serve_model(choice.checkpoint, choice.repository)
        with Stack(choice.repository, choice.state, on_progress=say) as stack:
            out = generate(stack.url, choice)
        print(out, flush=True)
        return 0
    except KeyboardInterrupt:
        say("stopped")
        return 130
    except (StackError, SettingsError, TritonServerError, httpx.HTTPError) as error:
        say(f"error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
