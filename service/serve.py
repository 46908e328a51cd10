"""`python -m service.serve`: keeps Triton, the gateway and the workers of one machine up until Ctrl-C."""

import argparse
import signal
import sys
import time

from service import options
from service.client import say
from service.errors import SettingsError
from service.launcher.server import TritonServerError
from service.stack import Stack, StackError, check_settings, exported


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m service.serve", description=__doc__.split(": ", 1)[1])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=1)
    options.add(parser)
    return parser.parse_args(arguments)


def show(stack: Stack) -> None:
    triton = stack.server
    say(f"page     {stack.url}/\nAPI      {stack.url}/v1/videos   (OpenAPI: {stack.url}/openapi.json)")
    say(
        f"metrics  {stack.url}/metrics\nTriton   gRPC {triton.grpc_url}   HTTP {triton.http_url}   metrics {triton.metrics_url}"
    )
    say(f"logs     {stack.state / 'log'}\nCtrl-C stops everything")


def main(arguments: list[str] | None = None) -> int:
    choice = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        check_settings()
        options.choose(choice)
        exported(choice.repository, choice.checkpoint, say, choice.target, choice.vram)
        options.serve_model(choice.checkpoint, choice.repository)
        with Stack(choice.repository, choice.state, choice.port, choice.host, choice.workers, say) as stack:
            show(stack)
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        say("stopped")
        return 0
    except (StackError, SettingsError, TritonServerError) as error:
        say(f"error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
