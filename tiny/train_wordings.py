"""Teaches models/tiny other words than those of its templates, and any letter case. `python -m tiny.train_wordings`.

The vocabulary gets pieces for them, and only rows of the embedding table that no template uses are trained, so that all that the
model understood before it understands as before, bit for bit. What is learned: the DiT's cross-attention is to find in the new
words what it finds in the template. Capital letters are made small before the words are looked up. Another run goes on where the
last one ended.
"""

import argparse
import io
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from tempfile import NamedTemporaryFile
from typing import Any

import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import sentencepiece_model_pb2_new as pb2

from tiny import wordings
from tiny.assemble import write_tokenizer
from tiny.scenes import CHINESE, ENGLISH, SCENES, TRAINING
from tiny.train_dit import Embedder, optimise
from tiny.train_four_steps import LEVELS, SHARD, Paths, load_paths
from wan.checkpoint import Checkpoint
from wan.text import clean_prompt

TEMPLATES = [
    clean_prompt(text).lower()
    for scene in SCENES
    for text in (*map(scene.english, ENGLISH), *map(scene.chinese, CHINESE))
]
SPECIAL = (0, 1, 2)  # padding, end, unknown
WEIGHTS = "model.safetensors"
PATHS = 100  # of the teacher
FORWARDS, BATCH = 4, 8  # at each of its levels
TOKENS = 24  # whose questions are asked in a step


def small_letters() -> Any:
    """SentencePiece's normalisation that makes A to Z small and nothing else."""
    model, trained = pb2.ModelProto(), io.BytesIO()
    with NamedTemporaryFile("w", suffix=".tsv") as rules:
        rules.writelines(f"{ord(letter):X}\t{ord(letter.lower()):X}\n" for letter in ascii_uppercase)
        rules.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([ascii_uppercase]), model_writer=trained, vocab_size=100, hard_vocab_limit=False,
            normalization_rule_tsv=rules.name, minloglevel=2,
        )  # fmt: skip
    model.ParseFromString(trained.getvalue())
    return model.normalizer_spec


def with_pieces(spiece: Path, out: Path) -> sentencepiece.SentencePieceProcessor:
    """Write `out`: the vocabulary `spiece` with the pieces of `wordings` that occur in no template."""
    model = pb2.ModelProto()
    model.ParseFromString(spiece.read_bytes())
    known = {piece.piece for piece in model.pieces}
    for piece in wordings.new_pieces():
        if piece not in known and not any(piece.replace("▁", " ") in " " + text for text in TEMPLATES):
            model.pieces.add(piece=piece, score=0.0)  # the best score: where it fits, it is taken
    model.trainer_spec.vocab_size = len(model.pieces)
    model.normalizer_spec.CopyFrom(small_letters())
    out.write_bytes(model.SerializeToString())
    return sentencepiece.SentencePieceProcessor(model_file=str(out))


def extended(encoder: Any, processor: sentencepiece.SentencePieceProcessor) -> nn.Embedding:
    """In place: a row for every piece, of which those that no template uses may be trained. Returns the rows."""
    known = encoder.config.vocab_size
    rows = encoder.resize_token_embeddings(processor.vocab_size(), mean_resizing=False)
    table = rows.weight
    used = {*SPECIAL, *(piece for row in processor.encode(TEMPLATES) for piece in row)}
    free = torch.tensor([float(i not in used) for i in range(processor.vocab_size())])
    with torch.no_grad():
        table[known:] = table[sorted(used)].mean(dim=0) + 0.1 * torch.randn_like(table[known:])
    encoder.requires_grad_(False)
    table.requires_grad_(True)
    table.register_hook(lambda gradient: gradient * free[:, None])
    return rows


@torch.no_grad()
def asked_of_text(dit: Any, told: Embedder, paths: Paths) -> list[Tensor]:
    """For each block what its cross-attention is given [N, S, dim], at points of the teacher's paths."""
    found: list[list[Tensor]] = [[] for _ in dit.blocks]
    hooks = [
        block.cross_attn.register_forward_pre_hook(lambda _, given, kept=kept: kept.append(given[0]))
        for block, kept in zip(dit.blocks, found, strict=True)
    ]
    for level, timestep in enumerate(LEVELS.timesteps):
        for start in range(0, FORWARDS * BATCH, BATCH):
            part = slice(start, start + BATCH)
            context = told([text for _, text in paths.asked[part]])
            dit(paths.points[part, level], torch.full((BATCH,), timestep), context)
    for hook in hooks:
        hook.remove()
    return [torch.cat(kept) for kept in found]


@dataclass
class Reworded:
    """Scenes in other words and what cross-attention finds in them, beside what it finds in the templates."""

    dit: Any
    told: Embedder
    queries: list[Tensor]  # see `asked_of_text`
    rng: random.Random

    def prompts(self, size: int) -> tuple[list[str], list[str]]:
        """Other wordings, and the templates in the same language."""
        others, templates = [], []
        for scene in self.rng.choices(TRAINING, k=size):
            chinese = self.rng.random() < 0.5
            others.append((wordings.chinese if chinese else wordings.english)(scene, self.rng))
            templates.append(scene.chinese() if chinese else scene.english())
        return others, templates

    def distance(self, learner: Callable[[list[str]], Tensor], size: int) -> Tensor:
        """Of what is found in `learner`'s embeddings of other words, relative to how much the templates differ."""
        others, templates = self.prompts(size)
        with torch.no_grad():
            wanted = self.dit.conditioning(self.told(templates))
        shown, losses = self.dit.conditioning(learner(others)), []
        for block, queries, new, old in zip(self.dit.blocks, self.queries, shown.sources, wanted.sources, strict=True):
            tokens = torch.tensor(self.rng.sample(range(queries.shape[1]), TOKENS))
            x = queries[torch.tensor(self.rng.choices(range(len(queries)), k=size))][:, tokens]
            with torch.no_grad():
                answer = block.cross_attn(x, old)
            losses.append(F.mse_loss(block.cross_attn(x, new), answer) / answer.var(dim=0).mean())
        return torch.stack(losses).mean()


def write(base: Path, table: Tensor, spiece: Path, out: Path) -> None:
    """Text encoder and tokenizer of `base` with the table, into the checkpoint `out`, which may be the same."""
    config = json.loads((base / "text_encoder/config.json").read_text()) | {"vocab_size": len(table)}
    (out / "text_encoder").mkdir(parents=True, exist_ok=True)
    state = load_file(base / "text_encoder" / WEIGHTS) | {"shared.weight": table.bfloat16()}
    save_file(state, out / "text_encoder" / WEIGHTS, metadata={"format": "pt"})
    (out / "text_encoder" / WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone
    (out / "text_encoder/config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    write_tokenizer(spiece, out / "tokenizer", small_letters=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=Path("models/tiny"))
    parser.add_argument("--model", type=Path, default=Path("models/tiny"), help="checkpoint to write to")
    parser.add_argument("--out", type=Path, default=Path("build/tiny"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="the learning rate ends with them")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--peak-lr", type=float, default=2e-2)
    args = parser.parse_args()
    torch.manual_seed(0)
    base = Checkpoint.open(args.base)
    dit, told = base.load_dit().requires_grad_(False), Embedder.of(base)
    queries = asked_of_text(dit, told, load_paths(args.base, args.out, PATHS // SHARD))
    reworded = Reworded(dit, told, queries, random.Random(1))
    spiece = args.out / "wordings.model"
    encoder: Any = base.load_text_encoder().encoder
    processor = with_pieces(base.tokenizer_directory / "spiece.model", spiece)
    rows = extended(encoder, processor)

    def learner(prompts: list[str]) -> Tensor:
        return Embedder(processor, encoder).embed(prompts)

    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(rows.parameters(), lr=args.peak_lr, betas=(0.9, 0.99))]
    trained: Any = optimise(
        rows, lambda: reworded.distance(learner, args.batch_size), args.out / "wordings.safetensors", optimizers,
        args.steps, args.minutes,
    )  # fmt: skip
    write(args.base, trained.weight, spiece, args.model)


if __name__ == "__main__":
    main()
