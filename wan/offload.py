"""Blocks whose weights lie in the host's memory and come to the device to compute, in the place of `WanDiT.blocks`.

The device has places for some of the blocks. Most blocks have one of their own, in which they stay; the others, spread
evenly among them, take turns in two, so that the next one is copied, by a stream of its own, while one computes. Experts
share all places, as only one of them runs: the first blocks that a step needs bring an expert in.

A parameter is a view of its block's place for good, so that compiled code and adapters see nothing move. What it holds
is the block's own only while an iteration over the blocks is at it.
"""

import weakref
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from wan.dit import WanDiT

TURNS = 2  # places that blocks without one of their own share
ALIGNMENT = 256  # of each tensor, as PyTorch's allocator on a GPU has it
PAGE = 4096
PORTABLE = 1  # cudaHostRegisterPortable


def beside(dit: WanDiT, device: torch.device) -> WanDiT:
    """Everything but the blocks of a `dit` that lies on the host brought to `device`, before `wan.optimize`."""
    for name, part in dit.named_children():
        if name != "blocks":
            part.to(device)
    return dit


def stream(dits: Sequence[WanDiT], on_device: int) -> None:
    """Keep the blocks of `dits`, one model's experts, on the host, and `on_device` at a time where the rest of them is.

    Raises ValueError for fewer than 2, or more than an expert has.
    """
    device, blocks = dits[0].device, len(dits[0].blocks)
    places = placed(blocks, on_device)
    weights = [[HostWeights(block, device) for block in dit.blocks] for dit in dits]
    size = max(each.memory.nbytes for each in chain(*weights))
    shared = Places(max(places) + 1, size, device)
    for dit, own in zip(dits, weights, strict=True):
        dit.blocks = StreamedBlocks(dit.blocks, own, places, shared)
        dit.engine["blocks_on_device"] = f"{on_device} of {blocks * len(dits)}"


def placed(blocks: int, on_device: int) -> list[int]:
    """For each block the place that it computes in, of `on_device` places; see above."""
    if not min(TURNS, blocks) <= on_device <= blocks:
        raise ValueError(f"{on_device} of {blocks} blocks on the device; allowed: {min(TURNS, blocks)} to {blocks}")
    own = blocks if on_device == blocks else on_device - TURNS
    stays = [(i + 1) * own // blocks for i in range(blocks)]  # how many up to each have a place of their own
    turns = [i + 1 - before for i, before in enumerate(stays)]
    alone = [stay > before for stay, before in zip(stays, [0, *stays], strict=False)]
    return [stays[i] - 1 if alone[i] else own + turns[i] % TURNS for i in range(blocks)]


class HostWeights:
    """All tensors of a block as one piece of the host's memory, which a GPU reads by itself."""

    def __init__(self, block: nn.Module, device: torch.device):
        self._tensors = list(chain(block.parameters(), block.buffers()))
        self._offsets, size = _packed(self._tensors)
        whole = torch.empty(size + 2 * PAGE, dtype=torch.uint8)
        begin = -whole.data_ptr() % PAGE  # pages are what is pinned, and none may be twice
        self.memory = whole[begin : begin + -(-size // PAGE) * PAGE]
        if device.type == "cuda":
            _pin(self)
        for tensor, part in zip(self._tensors, self._views(self.memory), strict=True):
            part.copy_(tensor.data)
            tensor.data = part

    def live_in(self, place: Tensor) -> None:
        """From here on the block's tensors are views of `place`."""
        for tensor, part in zip(self._tensors, self._views(place), strict=True):
            tensor.data = part

    def _views(self, memory: Tensor) -> list[Tensor]:
        each = zip(self._tensors, self._offsets, strict=True)
        return [memory[at : at + t.nbytes].view(t.dtype).view(t.shape) for t, at in each]


def _packed(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """Where each tensor begins in one piece of memory, and its size. What shares memory (`wan.fp8.JoinedLinears`) does there."""
    offsets, size, begin, end = {}, 0, 0, 0
    for tensor in sorted(tensors, key=lambda t: (t.data_ptr(), -t.nbytes)):
        start = tensor.data_ptr()
        if start >= end:
            base, begin, end = -(-size // ALIGNMENT) * ALIGNMENT, start, start
        offsets[id(tensor)] = base + start - begin
        end = max(end, start + tensor.nbytes)
        size = base + end - begin
    return [offsets[id(tensor)] for tensor in tensors], size


def _pin(weights: HostWeights) -> None:
    """PyTorch's own pinned memory would take the next power of two, half as much again for a block of 14B.

    Raises MemoryError where the machine does not let so much be pinned.
    """
    runtime: Any = torch.cuda.cudart()
    address, size = weights.memory.data_ptr(), weights.memory.nbytes
    if error := int(runtime.cudaHostRegister(address, size, PORTABLE)):
        raise MemoryError(f"{size} bytes of the host's memory cannot be pinned for the GPU: CUDA error {error}")
    weakref.finalize(weights, runtime.cudaHostUnregister, address).atexit = False


class Places:
    """Memory of the device for so many blocks, and which one is in each, or on its way there."""

    def __init__(self, count: int, size: int, device: torch.device):
        self.memory = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(count)]
        self.holds: list[HostWeights | None] = [None] * count
        self._copies = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
        if self._copies:
            self._arrived, self._left = ([torch.cuda.Event() for _ in range(count)] for _ in range(2))

    def bring(self, weights: HostWeights, place: int) -> None:
        """Begin to copy, once the block before has computed."""
        self.holds[place] = weights
        target = self.memory[place][: weights.memory.nbytes]
        if self._copies is None:
            target.copy_(weights.memory)
            return
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(self._left[place])
            target.copy_(weights.memory, non_blocking=True)
            self._arrived[place].record(self._copies)

    def enter(self, place: int) -> None:
        """What is launched from here on finds the block there."""
        if self._copies:
            torch.cuda.current_stream(self.memory[place].device).wait_event(self._arrived[place])

    def leave(self, place: int) -> None:
        """What was launched until here has to be done before another block comes."""
        if self._copies:
            self._left[place].record(torch.cuda.current_stream(self.memory[place].device))


class StreamedBlocks(nn.ModuleList):
    """Each block has its weights while an iteration is at it; no two iterations at once."""

    def __init__(self, blocks: nn.ModuleList, weights: Sequence[HostWeights], place: Sequence[int], places: Places):
        super().__init__(blocks)
        self._weights, self._place, self._places = weights, place, places
        for own, at in zip(weights, place, strict=True):
            own.live_in(places.memory[at])

    def __iter__(self) -> Iterator[nn.Module]:
        for i, block in enumerate(super().__iter__()):
            if not self._is_there(i):
                self._places.bring(self._weights[i], self._place[i])
            self._look_ahead(i)
            self._places.enter(self._place[i])
            try:
                yield block
            finally:
                self._places.leave(self._place[i])

    def _is_there(self, i: int) -> bool:
        return self._places.holds[self._place[i]] is self._weights[i]

    def _look_ahead(self, i: int) -> None:
        """Begin to copy the next block that is missing, after the last one the first, unless its place is in use until then."""
        count = len(self)
        ahead = [(i + step) % count for step in range(1, count)]
        missing = next((j for j in ahead if not self._is_there(j)), None)
        if missing is None:
            return
        sooner = [i, *ahead[: ahead.index(missing)]]
        if not any(self._place[j] == self._place[missing] and self._is_there(j) for j in sooner):
            self._places.bring(self._weights[missing], self._place[missing])
