"""BentoML's own timeout, which keeps every request in memory until its time is over, is not in the way of the service."""

import asyncio
import os
import subprocess
import sys

from service.bento_timeout import TimeoutMiddleware
from service.stack import ROOT

LIST_MIDDLEWARE = """
from service.service import WanService
print([getattr(kept.cls, "__name__", "") for kept in WanService.to_asgi().user_middleware])
"""


def test_the_service_is_built_without_it(tmp_path):
    environment = os.environ | {"WAN_STATE_DIR": str(tmp_path), "BENTOML_HOME": str(tmp_path / "bentoml")}
    command = [sys.executable, "-c", LIST_MIDDLEWARE]
    listed = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    assert "ContextMiddleware" in listed  # BentoML's others are there
    assert "no_timeout" in listed
    assert "TimeoutMiddleware" not in listed


def test_bentoml_still_needs_it():
    """Once this fails, BentoML cancels its timers and `service/bento_timeout.py` can go."""

    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def nothing(message=None):
        pass

    async def timers_left() -> int:
        await TimeoutMiddleware(answer, 1000)({"type": "http"}, nothing, nothing)
        return len(asyncio.get_running_loop()._scheduled)

    assert asyncio.run(timers_left()) == 1
