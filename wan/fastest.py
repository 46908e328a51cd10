"""Which attention is the fastest on this machine: measured at the start among the backends that are there and right.

The choice is kept in a file, so that a process which starts again chooses the same: backends differ in the last bits.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from wan import attention
from wan.attention import Backend
from wan.errors import InvalidRequest

logger = logging.getLogger(__name__)
REPEATS = 20
SECONDS = 0.5  # for each backend, after its first call
# By which one is ahead of those before it in the list, lest a tie falls differently each time; a CPU does other things too.
MARGIN = {"cuda": 0.05, "cpu": 0.25}
CPU_TOKENS = 512  # attention of a real size takes a CPU minutes
UNKNOWN_TOKENS = 4096
KEPT_IN = "attention.json"
_MEASURED: dict[str, dict[str, float]] = {}  # by this process: experts and tests ask again

Clock = Callable[[], float]


class Choice(NamedTuple):
    """A backend and, if it was measured, the milliseconds of all that it was chosen from."""

    backend: Backend
    milliseconds: dict[str, float]


def choose(
    name: str, device: torch.device, heads: int, head_dim: int, tokens: int | None = None, keep: Path | None = None
) -> Choice:
    """The backend `name`, or the fastest of a choice on a sequence of `tokens`; without them the first one of "auto".

    With `keep`, a directory, a choice that was made before on such a machine is made again. Raises InvalidRequest as
    `wan.attention.choose`.
    """
    if name not in attention.CHOICES or (name == "auto" and tokens is None):
        return Choice(attention.choose(name, device, heads, head_dim), {})
    found = attention.usable(attention.CHOICES[name], device, heads, head_dim)
    if len(found) < 2:
        return Choice(attention.choose(name, device, heads, head_dim), {})
    tokens = tokens or UNKNOWN_TOKENS
    tokens = tokens if device.type == "cuda" else min(tokens, CPU_TOKENS)
    file = keep / KEPT_IN if keep else None
    key = _key(device, tokens, heads, head_dim, found)
    if key not in _MEASURED:
        _MEASURED[key] = _kept(file).get(key) or measure(found, device, (1, tokens, heads, head_dim))
        logger.info("attention on %s: %s ms", key, _MEASURED[key])
    chosen = pick(found, _MEASURED[key], MARGIN[device.type])
    if file:
        _keep(file, key, _MEASURED[key])
    return Choice(chosen, _MEASURED[key])


def pick(backends: Sequence[Backend], milliseconds: dict[str, float], margin: float) -> Backend:
    """The first one that is within `margin` of the fastest. Raises InvalidRequest where none could be measured."""
    if not milliseconds:
        raise InvalidRequest("attention", "auto", "one that computes a video of this size; none did")
    enough = min(milliseconds.values()) * (1 + margin)
    return next(b for b in backends if milliseconds.get(b.name, float("inf")) <= enough)


@torch.inference_mode()
def measure(
    backends: Sequence[Backend], device: torch.device, shape: tuple[int, ...], clock: Clock = time.perf_counter
) -> dict[str, float]:
    """Milliseconds of each backend on [B, S, H, D], the shortest of some calls; one that fails there is left out.

    They take turns: what else happens on the machine makes calls longer, and should not do so to one of them alone.
    """
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    inputs = [torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(3)]

    def seconds(backend: Backend) -> float:
        began = clock()
        backend.function(*inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - began

    able = []
    for backend in backends:
        try:
            seconds(backend)  # compiles, loads kernels, takes memory
            able.append(backend)
        except (RuntimeError, AssertionError) as failure:  # of kernels that others have built, or of memory
            logger.warning("attention %s fails on %s: %s", backend.name, shape, failure)
    best, spent = {backend.name: float("inf") for backend in able}, 0.0
    for _ in range(REPEATS if able else 0):
        for backend in able:
            last = seconds(backend)
            best[backend.name], spent = min(best[backend.name], last), spent + last
        if spent > SECONDS * len(able):
            break
    return {name: round(1000 * value, 3) for name, value in best.items()}


def _key(device: torch.device, tokens: int, heads: int, head_dim: int, backends: Sequence[Backend]) -> str:
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    names = " ".join(backend.name for backend in backends)
    return f"{machine}, PyTorch {torch.__version__}, {tokens} tokens, {heads} heads of {head_dim}: {names}"


def _kept(file: Path | None) -> dict[str, dict[str, float]]:
    try:
        return json.loads(file.read_text()) if file else {}
    except (OSError, ValueError):
        return {}


def _keep(file: Path, key: str, milliseconds: dict[str, float]) -> None:
    kept = _kept(file)
    if key in kept:
        return
    temporary = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(kept | {key: milliseconds}, indent=1))
        temporary.replace(file)
    except OSError as error:  # the choice holds for as long as the process does
        logger.warning("the choice of attention is not kept in %s: %s", file, error)
