"""Into how many parts one video is divided among devices."""

import re
from dataclasses import dataclass

from contract.errors import InvalidRequest

_FORM = "cfg2, ulyssesN or cfg2xulyssesN, N dividing the heads"
# What a step takes on so many parts of the sequence, as a share of one device: the exchanges of a block, 8 bytes for each
# token and channel, cross NVLink in about 3 % of the time that one device takes. Predicted; `stages.cost` measures.
EXCHANGE = 0.03


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

    @property
    def sequence_share(self) -> float:
        """Predicted time of a branch's step as a share of that on one device."""
        return (1 + EXCHANGE * (self.ulysses - 1)) / self.ulysses

    def check(self, heads: int) -> None:
        """Raises InvalidRequest where the heads of a DiT cannot be divided."""
        if heads % self.ulysses:
            fits = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            raise InvalidRequest("parallel", str(self), f"ulyssesN with N of {fits}, as the DiT has {heads} heads")


ONE_RANK = Degrees()
