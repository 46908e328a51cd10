"""`python -m service.launcher --repository build/repository`: a supervised Triton server in the foreground."""

import argparse
import logging
import signal
import sys
import time

from service.launcher.install import TritonServerError
from service.launcher.server import WATCH_SECONDS, TritonServer


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m service.launcher", description=__doc__.split("\n")[0])
    parser.add_argument("--repository", default="build/repository", help="exported model repository")
    parser.add_argument("--run-dir", help="where requests leave progress, checkpoints and cancel marks (WAN_RUN_DIR)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--metrics-host", help="address of the metrics port; default: that of --host")
    parser.add_argument("--http-port", type=int, default=8000)
    parser.add_argument("--grpc-port", type=int, default=8001)
    parser.add_argument("--metrics-port", type=int, default=8002)
    parser.add_argument("--log", help="log file; default: build/log/tritonserver-PORT.log beside the repository")
    parser.add_argument(
        "--tritonserver", help="path of the binary; default: the nvidia-pytriton package, PATH, /opt/tritonserver"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run in the foreground until SIGINT or SIGTERM; the exit status is 1 if the server could not be kept up."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    server = TritonServer(
        options.repository,
        run_dir=options.run_dir,
        host=options.host,
        metrics_host=options.metrics_host,
        http_port=options.http_port,
        grpc_port=options.grpc_port,
        metrics_port=options.metrics_port,
        log_path=options.log,
        tritonserver=options.tritonserver,
        on_progress=lambda model, ready, total: print(f"[{ready}/{total}] {model} is ready", flush=True),
    )
    try:
        with server:
            print(
                f"Triton is ready: gRPC {server.grpc_url}, HTTP {server.http_url}, metrics {server.metrics_url}",
                flush=True,
            )
            while server.failure is None:
                time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return 0
    except TritonServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 1


if __name__ == "__main__":
    sys.exit(main())
