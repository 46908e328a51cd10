"""A service that leaks on request: memory, file descriptors and run directories, a bit with each video."""

import argparse
import asyncio
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from aiohttp import web
from standin import StandIn

KEPT = []


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--bytes", type=int, default=0)
    parser.add_argument("--files", type=int, default=0)
    parser.add_argument("--folders", type=int, default=0)
    given = parser.parse_args()
    standin = StandIn(0.005)
    create = standin.create

    async def leaking(request: web.Request) -> web.Response:
        KEPT.append(b"x" * given.bytes)
        KEPT.extend(os.open("/dev/null", os.O_RDONLY) for _ in range(given.files))
        for index in range(given.folders):
            (given.state / "run" / f"{len(KEPT)}-{index}").mkdir(parents=True)
        return await create(request)

    standin.create = leaking
    runner = web.AppRunner(standin.application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
