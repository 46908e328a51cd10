"""How a video is divided among ranks, and the part of each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from wan.config import DiTConfig
from wan.errors import InvalidRequest

_FORM = "cfg2, ulyssesN or cfg2xulyssesN, N dividing the heads"


@dataclass(frozen=True)
class Degrees:
    """Into how many parts guidance (1 or 2) and the sequence are divided; one rank for each combination."""

    cfg: int = 1
    ulysses: int = 1

    @classmethod
    def parse(cls, text: str) -> "Degrees":
        """`cfg2xulysses4` and its parts; raises InvalidRequest."""
        found = re.fullmatch(r"(cfg2)?x?(?:ulysses([1-9]\d*))?", text)
        if not text or found is None or text != str(degrees := cls(2 if found[1] else 1, int(found[2] or 1))):
            raise InvalidRequest("parallel", text, _FORM)
        return degrees

    def __str__(self) -> str:
        parts = ["cfg2"] * (self.cfg > 1) + [f"ulysses{self.ulysses}"] * (self.ulysses > 1)
        return "x".join(parts)

    @property
    def ranks(self) -> int:
        return self.cfg * self.ulysses

    def check(self, config: DiTConfig) -> None:
        """Raises InvalidRequest where the heads cannot be divided."""
        if config.num_heads % self.ulysses:
            fits = ", ".join(str(n) for n in range(1, config.num_heads + 1) if config.num_heads % n == 0)
            raise InvalidRequest(
                "parallel", str(self), f"ulyssesN with N of {fits}, as the DiT has {config.num_heads} heads"
            )


@dataclass(frozen=True)
class Share:
    """What rank `rank` computes. Ranks of a branch follow each other; rank 0 has the first tokens of the conditional one."""

    degrees: Degrees = Degrees()
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

    def tokens(self, whole: Tensor) -> Tensor:
        """This rank's part of [B, S, ...]: equal parts, the last ones padded with zeros."""
        parts = self.degrees.ulysses
        if parts == 1:
            return whole
        length = -(-whole.shape[1] // parts)
        start = (self.rank % parts) * length
        part = whole[:, start : start + length]
        missing = length - part.shape[1]
        return F.pad(part, (0, 0) * (whole.dim() - 2) + (0, missing)) if missing else part.contiguous()


WHOLE = Share()  # of a run on one device
