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
from torch import Tensor

from wan import attention
from wan.attention import Backend
from wan.errors import InvalidRequest

logger = logging.getLogger(__name__)
REPEATS = 5
SECONDS = 0.5  # for one backend, after its first call
MARGIN = 0.05  # by which one is ahead of those before it in the list, lest a tie falls differently each time
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
    chosen = pick(found, _MEASURED[key])
    if file:
        _keep(file, key, _MEASURED[key])
    return Choice(chosen, _MEASURED[key])


def pick(backends: Sequence[Backend], milliseconds: dict[str, float]) -> Backend:
    """The first one that is within MARGIN of the fastest. Raises InvalidRequest where none could be measured."""
    if not milliseconds:
        raise InvalidRequest("attention", "auto", "one that computes a video of this size; none did")
    enough = min(milliseconds.values()) * (1 + MARGIN)
    return next(b for b in backends if milliseconds.get(b.name, float("inf")) <= enough)


@torch.inference_mode()
def measure(
    backends: Sequence[Backend], device: torch.device, shape: tuple[int, ...], clock: Clock = time.perf_counter
) -> dict[str, float]:
    """Milliseconds of each backend on [B, S, H, D]; one that fails at that size is left out."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    q, k, v = (torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(3))
    found = {}
    for backend in backends:
        try:
            found[backend.name] = round(1000 * _seconds(backend, (q, k, v), device, clock), 3)
        except (RuntimeError, AssertionError) as failure:  # of kernels that others have built, or of memory
            logger.warning("attention %s fails on %s: %s", backend.name, shape, failure)
    return found


def _seconds(backend: Backend, inputs: tuple[Tensor, ...], device: torch.device, clock: Clock) -> float:
    """The shortest of some calls: what others do on the machine only makes them longer."""

    def once() -> float:
        began = clock()
        backend.function(*inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - began

    once()  # compiles, loads kernels, takes memory
    best = spent = once()
    for _ in range(REPEATS - 1):
        if spent > SECONDS:
            break
        best, spent = min(best, last := once()), spent + last
    return best


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
