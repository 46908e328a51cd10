"""Attention over a sequence that is divided among ranks (DeepSpeed-Ulysses, arXiv:2309.14509).

Each rank has some tokens of all heads. An exchange gives it all tokens of some heads, it attends, and another one gives
the results back. Any backend does, as it sees whole sequences; the zeros that pad the last tokens are cut off before.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


_CURRENT: list["Exchange"] = []


class Exchange:
    """The self-attention of `dits` among the ranks of `group`, the only one of this process.

    `tokens` says how many of a sequence are no padding.
    """

    def __init__(self, group: Any, ranks: int, dits: Sequence[Any]):
        self.group, self.ranks, self.tokens = group, ranks, 0
        self._layers = [block.self_attn for dit in dits for block in dit.blocks]
        self.attend: Attend = self._layers[0].attend
        _CURRENT[:] = [self]
        for layer in self._layers:
            layer.attend = attend_together

    def remove(self) -> None:
        """Every rank for itself again."""
        for layer in self._layers:
            layer.attend = self.attend
        _CURRENT.clear()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # [B, S / ranks, H, D] -> [B, S / ranks, H * D]
        batch, length, heads, width = q.shape
        own = heads // self.ranks
        packed = torch.stack([q, k, v]).view(3, batch, length, self.ranks, own, width)
        # [rank, q k v, B, S / ranks, H / ranks, D]: to each rank its heads, from each rank its tokens
        received = self._to_all(packed.permute(3, 0, 1, 2, 4, 5).contiguous())
        q, k, v = received.permute(1, 2, 0, 3, 4, 5).flatten(2, 3).unbind()
        out = self.attend(q.contiguous(), k[:, : self.tokens].contiguous(), v[:, : self.tokens].contiguous())
        back = out.view(batch, self.ranks, length, own * width).transpose(0, 1).contiguous()
        return self._to_all(back).permute(1, 2, 0, 3).flatten(2)

    def _to_all(self, x: Tensor) -> Tensor:
        received = torch.empty_like(x)
        dist.all_to_all_single(received, x, group=self.group)
        return received


@torch.library.custom_op("wan::attend_together", mutates_args=())
def _opaque(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The compiler would break its graph at each exchange."""
    return _CURRENT[-1](q, k, v)


@_opaque.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(*q.shape[:2], q.shape[2] * q.shape[3])


def attend_together(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Self-attention through the exchange of this process."""
    return _opaque(q, k, v) if torch.compiler.is_compiling() else _CURRENT[-1](q, k, v)
