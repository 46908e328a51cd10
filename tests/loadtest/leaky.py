"""A service that leaks on request, a bit with each video: memory, file descriptors, threads, shared memory and so on."""

import argparse
import asyncio
import os
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from aiohttp import web
from standin import StandIn

KEPT: list = []
SHARED: list[Path] = []


def leak(given: argparse.Namespace) -> None:
    """What one video leaves behind."""
    KEPT.append(b"x" * given.bytes)
    KEPT.extend(os.open("/dev/null", os.O_RDONLY) for _ in range(given.files))
    for _ in range(given.threads):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    for index in range(given.folders):
        (given.state / "run" / f"{len(KEPT)}-{index}").mkdir(parents=True)
    for index in range(given.shared):
        SHARED.append(Path(f"/dev/shm/leaky-{os.getpid()}-{len(KEPT)}-{index}"))
        SHARED[-1].write_bytes(b"x" * 65536)
    with (given.state / "jobs.db").open("ab") as file:
        file.write(b"x" * given.rows)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True)
    for name in ("bytes", "files", "threads", "folders", "shared", "rows"):
        parser.add_argument(f"--{name}", type=int, default=0)
    given = parser.parse_args()
    standin = StandIn(0.005)
    create = standin.create

    async def leaking(request: web.Request) -> web.Response:
        leak(given)
        return await create(request)

    standin.create = leaking
    runner = web.AppRunner(standin.application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for path in SHARED:
        path.unlink()


if __name__ == "__main__":
    asyncio.run(main())
