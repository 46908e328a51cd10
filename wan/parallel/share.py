"""The part of a video that each rank computes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from contract.parallel import ONE_RANK, Degrees


@dataclass(frozen=True)
class Share:
    """What rank `rank` computes. Ranks of a branch follow each other; rank 0 has the first tokens of the conditional one."""

    degrees: Degrees = ONE_RANK
    rank: int = 0

    @property
    def branch(self) -> int:
        """0 for the conditional branch, which is never idle."""
        return self.rank // self.degrees.ulysses

    def is_idle(self, branches: int) -> bool:
        """Whether a step of so many guidance branches leaves nothing to this rank."""
        return self.branch >= branches

    def texts(self, texts: Sequence[Tensor]) -> list[Tensor]:
        """Those of this rank's branches."""
        if self.degrees.cfg == 1 or len(texts) == 1:
            return list(texts)
        return [texts[self.branch]]

    def branches(self, branches: int) -> int:
        """How many of a step's guidance branches this rank computes, if it is not idle."""
        return branches if self.degrees.cfg == 1 else 1

    def _place(self, length: int) -> tuple[int, int]:
        """Where this rank's tokens begin among `length`, and how many there are with padding."""
        own = -(-length // self.degrees.ulysses)
        return self.rank % self.degrees.ulysses * own, own

    def among_first(self, count: int, length: int) -> int:
        """How many of this rank's tokens are among the first `count` of `length`."""
        start, own = self._place(length)
        return min(max(count - start, 0), own)

    def tokens(self, whole: Tensor) -> Tensor:
        """This rank's part of [B, S, ...]: equal parts, the last ones padded with zeros."""
        if self.degrees.ulysses == 1:
            return whole
        start, length = self._place(whole.shape[1])
        part = whole[:, start : start + length]
        missing = length - part.shape[1]
        return F.pad(part, (0, 0) * (whole.dim() - 2) + (0, missing)) if missing else part.contiguous()


WHOLE = Share()  # of a run on one device
