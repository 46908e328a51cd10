"""Makes the tiny tokenizer (SentencePiece) and trains the tiny umT5 encoder. `python -m tiny.train_text --out DIR`.

The encoder learns to tell a scene's attributes from its prompt, in English and Chinese; its embeddings then carry
what the DiT must draw. It is frozen afterwards.
"""

import argparse
import io
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tiny.scenes import BACKGROUNDS, CHINESE, COLORS, DIRECTIONS, ENGLISH, SCENES, SHAPES, TRAINING, Scene
from wan.config import TextConfig
from wan.structure import build_umt5
from wan.text import clean_prompt

ARCHITECTURE: dict[str, Any] = dict(d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4)
ATTRIBUTES = {
    "shape": list(SHAPES),
    "color": list(COLORS),
    "direction": list(DIRECTIONS),
    "background": list(BACKGROUNDS),
}
# Words that people type and no template has; without them every one would be an unknown token.
EXTRA = (
    "a small large video of object moves slowly quickly across the screen to toward towards upward downward upwards downwards",
    "一个小大的视频里物体慢慢快速地穿过屏幕往朝着方向移动运动飞正方形圆圈十字形三角形",
    "the quick brown fox jumps over the lazy dog 0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ .,;:!?()'\"-",
)


def train_tokenizer(out: Path) -> sentencepiece.SentencePieceProcessor:
    """Write `out`/spiece.model with umT5's special tokens: pad 0, </s> 1, <unk> 2.

    No Unicode normalisation: prompts are cleaned before, and its table would be most of the file.
    """
    texts = (
        [s.english(t) for s in SCENES for t in ENGLISH]
        + [s.chinese(t) for s in SCENES for t in CHINESE]
        + list(EXTRA) * 50
    )
    corpus = [clean_prompt(t) for t in texts]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=model, vocab_size=300, model_type="unigram", hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", character_coverage=1.0, byte_fallback=False,
        normalization_rule_name="identity", num_threads=1, minloglevel=2,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "spiece.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


_cleaned = lru_cache(maxsize=None)(clean_prompt)


def tokenize(processor: sentencepiece.SentencePieceProcessor, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, L], as long as the longest prompt, </s> included."""
    rows = [processor.encode(_cleaned(p)) + [1] for p in prompts]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, (ids != 0).long()


def labels(scenes: list[Scene]) -> Tensor:
    return torch.tensor([[values.index(getattr(s, name)) for name, values in ATTRIBUTES.items()] for s in scenes])


class Heads(nn.Module):
    """One classifier per attribute over the mean embedding; only used in training."""

    def __init__(self, dim: int):
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(dim, len(values)) for values in ATTRIBUTES.values()])

    def loss(self, hidden: Tensor, mask: Tensor, target: Tensor) -> tuple[Tensor, float]:
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        logits = [head(pooled) for head in self.heads]
        loss = torch.stack([F.cross_entropy(x, target[:, i]) for i, x in enumerate(logits)]).sum()
        correct = torch.stack([x.argmax(1) == target[:, i] for i, x in enumerate(logits)]).all(0)
        return loss, correct.float().mean().item()


def train(encoder: nn.Module, processor, steps: int, batch_size: int = 64) -> float:
    """Train `encoder`; returns the share of held-out prompts of which every attribute is recognised."""
    rng = random.Random(0)
    heads = Heads(ARCHITECTURE["d_model"])
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        scenes = rng.choices(TRAINING, k=batch_size)
        ids, mask = tokenize(processor, [s.random_prompt(rng) for s in scenes])
        loss, accuracy = heads.loss(encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask, labels(scenes))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"text step {step + 1}/{steps} loss {loss.item():.4f} accuracy {accuracy:.3f}", flush=True)
    held_out = [s for s in SCENES if s.held_out] * 4
    ids, mask = tokenize(processor, [s.random_prompt(rng) for s in held_out])
    with torch.no_grad():
        return heads.loss(encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask, labels(held_out))[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/tiny"))
    parser.add_argument("--steps", type=int, default=700)
    args = parser.parse_args()
    torch.manual_seed(0)
    processor = train_tokenizer(args.out)
    encoder = build_umt5(TextConfig(vocab_size=processor.vocab_size(), **ARCHITECTURE))
    accuracy = train(encoder, processor, args.steps)
    print(f"held-out prompts understood: {accuracy:.3f}; vocabulary {processor.vocab_size()}")
    state = {k: v for k, v in encoder.state_dict().items() if k != "encoder.embed_tokens.weight"}
    save_file(state, args.out / "text.safetensors")


if __name__ == "__main__":
    main()
