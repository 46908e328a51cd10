"""A stand-in for Triton whose decoder stops half way until it is told to go on."""

import asyncio
import json
import threading

from tests.service.fake_triton import FakeTriton


class SlowDecoder(FakeTriton):
    """`go_on` lets the decoder finish; `broken`, if set by then, is raised instead, once."""

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.go_on = threading.Event()
        self.broken: Exception | None = None

    async def _denoise(self, request_id, request, preview):
        frames, info = await super()._denoise(request_id, request, preview)
        if request.get("stream"):
            half = len(frames) // 2
            await self._decode(request_id, request, frames[:half])
            while not self.go_on.is_set():
                await asyncio.sleep(0.02)
            broken, self.broken = self.broken, None
            if broken is not None:
                raise broken
            await self._decode(request_id, request, frames[half:])
        return frames, info

    async def _decode(self, request_id, request, frames):
        folder, steps = self.run_dir / request_id, request["steps"]
        with (folder / "frames.rgb").open("ab") as file:
            file.write(frames.tobytes())
        progress = {"step": steps, "steps": steps, "skipped": 0, "step_seconds": 0.1, "phase": "decode"}
        (folder / "progress.json").write_text(json.dumps(progress))
