"""`python -m service.run --prompt TEXT`: starts everything, makes one video over HTTP, stops everything."""

import argparse
import sys
from pathlib import Path

import httpx

from contract import arguments as arguments_of
from service import client, options
from service.client import ClientError, say
from service.errors import SettingsError
from service.launcher.server import TritonServerError
from service.stack import Stack, StackError, check_settings, exported


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m service.run", description=__doc__.split(": ", 1)[1])
    parser.add_argument(
        "--out", type=client.video_path, help="where to write the video; default: in the state directory"
    )
    arguments_of.add(parser, required=("prompt",))
    arguments_of.add_media(parser)
    options.add(parser)
    return parser.parse_args(arguments)


def check_media(choice: argparse.Namespace) -> None:
    """Before anything is started; StackError names the option and the file."""
    for name, path in arguments_of.given_media(choice).items():
        if not path.is_file():
            raise StackError(f"--{name.replace('_', '-')} is {str(path)!r}; allowed: an existing file")


def generate(url: str, choice: argparse.Namespace) -> Path:
    """Submit, watch, download."""
    with httpx.Client(base_url=url, timeout=30) as http:
        job_id = client.submit(http, choice)
        video = client.watch(http, job_id)
        out = client.fetch(http, video, choice.out or choice.state / f"{job_id}.mp4")
    say(
        f"{video['size']}, {video['num_frames']} frames, seed {video['seed']}, {video['inference_time_s']:.1f} s in Triton"
    )
    return out


def main(arguments: list[str] | None = None) -> int:
    choice = parse(arguments)
    try:
        check_settings()
        check_media(choice)
        options.choose(choice, arguments_of.given_media(choice))
        exported(choice.repository, choice.checkpoint, say, choice.target, choice.vram)
        options.serve_model(choice.checkpoint, choice.repository)
        with Stack(choice.repository, choice.state, on_progress=say) as stack:
            out = generate(stack.url, choice)
        print(out, flush=True)
        return 0
    except KeyboardInterrupt:
        say("stopped")
        return 130
    except (ClientError, StackError, SettingsError, TritonServerError, httpx.HTTPError) as error:
        say(f"error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
