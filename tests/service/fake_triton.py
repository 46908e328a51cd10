"""Stands in for Triton in unit tests: follows the run directory's contract, draws one grey level per frame."""

import asyncio
import json
import time
from pathlib import Path

import numpy as np

from service.errors import GenerationCancelled, GenerationFailed

HEADER = "__metadata__"


class FakeTriton:
    """A Generator with `slot_count` denoise slots whose steps take `step_seconds`."""

    def __init__(self, run_dir: Path, step_seconds: float = 0.02, slot_count: int = 1, checkpoint_every: int = 5):
        self.run_dir, self.step_seconds, self.slot_count = run_dir, step_seconds, slot_count
        self.checkpoint_every = checkpoint_every
        self.is_ready = True
        self.calls: list[str] = []
        self.steps_done: list[tuple[str, int]] = []
        self.media: dict[str, dict[str, bytes]] = {}
        self.stopped_at: dict[str, float] = {}
        self.break_at: dict[str, int] = {}  # prompt -> step at which the attempt breaks, once
        self.break_with: Exception = GenerationFailed("the stub died")
        self.error: Exception | None = None
        self._slots = asyncio.Semaphore(slot_count)

    async def ready(self) -> bool:
        return self.is_ready

    async def slots(self) -> int:
        return self.slot_count

    async def close(self) -> None:
        pass

    async def generate(self, request_id: str, request: dict, preview: bool = False, media: dict | None = None):
        self.calls.append(request_id)
        self.media[request_id] = media or {}
        if self.error is not None:
            raise self.error
        async with self._slots:
            return await self._denoise(request_id, request, preview)

    async def _denoise(self, request_id: str, request: dict, preview: bool):
        folder, steps = self.run_dir / request_id, request["steps"]
        resumed = _checkpoint_step(folder / "checkpoint.safetensors")
        for step in range((resumed or 0) + 1, steps + 1):
            if (folder / "cancel").exists():
                self.stopped_at[request_id] = time.monotonic()
                raise GenerationCancelled("stopped before step")
            await asyncio.sleep(self.step_seconds)
            self.steps_done.append((request["prompt"], step))
            progress = {"step": step, "steps": steps, "skipped": 0, "step_seconds": self.step_seconds,
                        "eta_seconds": (steps - step) * self.step_seconds, "phase": "denoise"}  # fmt: skip
            _write(folder / "progress.json", json.dumps(progress).encode())
            if step % self.checkpoint_every == 0:
                _write(folder / "checkpoint.safetensors", _safetensors(step))
            if preview:
                _write(folder / "preview.webp", b"RIFF" + bytes([step % 256]))
            if self.break_at.get(request["prompt"]) == step:
                del self.break_at[request["prompt"]]
                raise self.break_with
        frames = np.full(
            (request["num_frames"], request["height"], request["width"], 3), request["seed"] % 256, np.uint8
        )
        frames[:, 0] = 255 - request["seed"] % 256  # a healthy device draws no frames that are all alike
        seconds = {"text_encoder": 0.01, "denoise": steps * self.step_seconds, "vae_decoder": 0.01}
        info = {"seed": request["seed"], "steps": steps, "steps_computed": steps - (resumed or 0), "steps_skipped": 0,
                "resumed_from": resumed, "fps": 16, "seconds": seconds}  # fmt: skip
        return frames, info


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(data)
    temporary.rename(path)


def _safetensors(step: int) -> bytes:
    header = json.dumps({HEADER: {"step": str(step)}}).encode()
    return len(header).to_bytes(8, "little") + header


def _checkpoint_step(path: Path) -> int | None:
    if not path.exists():
        return None
    data = path.read_bytes()
    return int(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])[HEADER]["step"])
