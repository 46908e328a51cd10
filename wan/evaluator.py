"""Evaluates one step of a request: everything that stays the same between an expert's steps, both guidance branches."""

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wan.dit import Sources, WanDiT
from wan.errors import InvalidRequest
from wan.lora import Lora
from wan.parallel.share import WHOLE, Share

# Above this many tokens one forward fills the machine and two branches at once only cost memory.
MAX_BATCHED_TOKENS = 8192
MAX_MEMORY_SHARE = 0.5  # of what is free, for the activations of a batch


@dataclass(frozen=True)
class Conditioning:
    """What a request gives the model besides noise; what is None is absent.

    `text` and `negative_text` are embeddings [L, text_dim] with zero rows as padding; the latter is not used without
    guidance. `channels` [in - out, T', h, w] go into the model beside the latents at every step (mask and latents of the
    known frames), never into the solver. `image_tokens` [L, image_dim] are CLIP's of the pictures. Both guidance branches
    see the same of both. `start` [C, T', h, w] are latents of a clip to change: the run begins at the noise level that the
    request's strength names. `first` [C, 1, h, w] is the first latent frame of the result: it is shown to the model free of
    noise, at timestep 0.
    """

    text: Tensor
    negative_text: Tensor | None = None
    channels: Tensor | None = None
    image_tokens: Tensor | None = None
    start: Tensor | None = None
    first: Tensor | None = None

    def impose(self, latents: Tensor) -> Tensor:
        """The latents, with the first frame where it is given."""
        return latents if self.first is None else torch.cat([self.first.to(latents), latents[:, 1:]], dim=1)


@dataclass(frozen=True)
class Step:
    """What one step will do: by which expert, computed or from the cache, and with how many guidance branches."""

    expert: int
    computed: bool
    branches: int


@dataclass(frozen=True)
class Span:
    """What an expert is told of a request before its steps.

    `texts` [L, text_dim] are the conditional one and, where any step is guided, the other. `together`: both branches are
    one batch. Without `keep_residual` no step is skipped. `first_given`: the first latent frame is at timestep 0. `adapters`
    are beside the expert's weights meanwhile, on every rank.
    """

    expert: int
    timesteps: tuple[float, ...]
    texts: tuple[Tensor, ...]
    guidance: float
    shape: tuple[int, ...]  # of the latents
    channels: Tensor | None
    image_tokens: Tensor | None
    keep_residual: bool
    together: bool
    first_given: bool = False
    adapters: tuple[tuple[Lora, float], ...] = ()


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a GPU or, for the CPU, in the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def batch_branches(dit: WanDiT, tokens: int) -> bool:
    """Whether both guidance branches go through the model as one batch: if they are small and their memory is there."""
    if 2 * tokens > MAX_BATCHED_TOKENS:
        return False
    # the widest moment: residual, norm and the hidden feed-forward layer
    width = dit.config.ffn_dim + 8 * dit.config.dim
    return 2 * tokens * width * 4 <= MAX_MEMORY_SHARE * free_bytes(dit.device)


class Evaluator:
    """An expert with what stays the same over its steps; `share` is the part of them that is computed here."""

    def __init__(self, dit: WanDiT, span: Span, share: Share = WHOLE):
        self.dit, self.span, self.share = dit, span, share
        self.channels = _channels(dit, span)
        self.time, self.modulation = dit.time_embeddings(span.timesteps)
        rotary = dit.rotary(span.shape)
        self.length, self.rotary = rotary.shape[1], share.tokens(rotary)
        # tokens here at timestep 0, see `_rows`
        self.still = share.among_first(self.length // span.shape[1], self.length) if span.first_given else 0
        self.at_zero = dit.time_embeddings([0.0]) if self.still else None
        image = None if span.image_tokens is None else span.image_tokens[None].to(dit.device)
        texts = share.texts(span.texts)
        both = dit.conditioning(torch.stack(texts).to(dit.device), image)
        self.conditional = both.select(0)  # or, in a share of one branch, that branch
        whole = len(texts) == 1 or span.together
        self.branches = [both] if whole else [both.select(i) for i in range(len(texts))]
        self.residual: Any = None  # of the last computed step, [branches here, tokens here, dim]

    def _run(self, tokens: Tensor, i: int, branches: list[Sources]) -> Tensor:  # [1, S, dim] -> [1 or 2, S, dim]
        modulation = self._rows(1, self.modulation[i : i + 1])
        outputs = [
            self.dit.run_blocks(tokens.expand(b.batch, -1, -1).contiguous(), modulation, self.rotary, b, self.still)
            for b in branches
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _rows(self, which: int, at_step: Tensor) -> Tensor:
        """What `time_embeddings` says of a step, below what it says of tokens at timestep 0 if there are any."""
        return at_step if self.at_zero is None else torch.cat([self.at_zero[which], at_step])

    def part(self, latents: Tensor, i: int, step: Step) -> Tensor:  # [C, T', h, w] -> [branches, tokens here, values]
        """What `WanDiT.unpatchify` takes, of this share."""
        inputs = latents if self.channels is None else torch.cat([latents, self.channels])
        tokens = self.share.tokens(self.dit.patchify(inputs[None]))
        branches = self.branches if self.share.branches(step.branches) == 2 else [self.conditional]
        if step.computed:
            out = self._run(tokens, i, branches)
            self.residual = out - tokens if self.span.keep_residual else None
        else:
            out = tokens + self.residual[: sum(b.batch for b in branches)]
        return self.dit.project(out, self._rows(0, self.time[i : i + 1]), self.still)

    def nothing(self) -> Tensor:
        """In the place of `part` where this share is idle."""
        config, dtype = self.dit.config, self.dit.head.head.weight.dtype
        values = config.out_channels * math.prod(config.patch_size)
        return torch.zeros(1, self.rotary.shape[1], values, dtype=dtype, device=self.dit.device)

    def velocity(self, latents: Tensor, i: int, step: Step) -> Tensor:  # [C, T', h, w] float32
        """Of a share that is everything."""
        return self.guided(self.part(latents, i, step), latents, step)

    def guided(self, values: Tensor, latents: Tensor, step: Step) -> Tensor:
        """The velocity from the values [branches, S, values] of all tokens."""
        output = self.dit.unpatchify(values, latents.shape).float()
        if step.branches == 1:
            return output[0]
        conditional, unconditional = output
        return unconditional + self.span.guidance * (conditional - unconditional)


def _channels(dit: WanDiT, span: Span) -> Tensor | None:
    """What goes into the model beside latents of `shape`; raises InvalidRequest if it is not what the model takes."""
    count = dit.config.in_channels - dit.config.out_channels
    expected = (count, *span.shape[1:]) if count else None
    found = None if span.channels is None else tuple(span.channels.shape)
    if found != expected:
        raise InvalidRequest("condition channels shape", found, str(expected or "none, as this model takes none"))
    return None if span.channels is None else span.channels.to(dit.device, torch.float32)
