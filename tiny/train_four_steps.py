"""Teaches models/tiny to draw in four steps without guidance, as a LoRA. `python -m tiny.train_four_steps --base models/tiny`.

The teacher is the base with guidance, whose path from a noise to a clip is followed by a second-order solver through the four
noise levels that Euler's four steps visit. The student starts from the same noise; each of its steps begins where the last
one ended and is to end on the teacher's path, so that it also learns to make up for its own errors.
"""

import argparse
import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from contract.variants import BY_NAME
from tiny.lora import FOLDER, attach, save, trainable
from tiny.scenes import TRAINING, Scene
from tiny.train_dit import Embedder, optimise
from wan import Pipeline
from wan.checkpoint import Checkpoint
from wan.denoise import initial_latents
from wan.samplers import schedule

FEW = BY_NAME["t2v-4step"].defaults
LEVELS = schedule(FEW.sampler, FEW.steps, FEW.flow_shift)
SUBSTEPS = 3  # of the teacher, in each step of the student
SHARD = 100  # paths that are drawn and kept together


@dataclass(frozen=True)
class Paths:
    """Scenes, prompts and the teacher's points [N, 5, z, T', h, w] from noise to clip, one for each of the `LEVELS`."""

    asked: list[tuple[Scene, str]]
    points: Tensor


def asked(count: int, seed: int) -> list[tuple[Scene, str]]:
    rng = random.Random(seed)
    return [(scene, scene.random_prompt(rng)) for scene in (rng.choice(TRAINING) for _ in range(count))]


def draw(teacher: Pipeline, count: int, seed: int) -> Tensor:
    """The teacher's points of `count` prompts, each from a noise of its own."""
    geometry, paths = teacher.card.geometry, []
    for i, (_, prompt) in enumerate(asked(count, seed)):
        request = teacher.card.request(
            prompt=prompt, seed=seed * count + i, sampler="dpm++", steps=SUBSTEPS * FEW.steps,
            flow_shift=FEW.flow_shift, cache_threshold=0.0,
        )  # fmt: skip
        shape = geometry.latent_shape(request.width, request.height, request.num_frames)
        points = [initial_latents(request.seed, shape)]

        def keep(progress, points=points) -> None:
            if progress.step % SUBSTEPS == 0:
                points.append(progress.state.latents)

        teacher.denoise(teacher.condition(request), request, on_step=keep)
        paths.append(torch.stack(points))
    return torch.stack(paths)


def load_paths(base: Path, out: Path, shards: int) -> Paths:
    """Drawn by the base, or from the files of an earlier run."""
    teacher, points = None, []
    for seed in range(shards):
        file = out / f"paths-{SHARD}-{seed}.safetensors"
        if not file.is_file():
            teacher = teacher or Pipeline.from_checkpoint(base)
            save_file({"points": draw(teacher, SHARD, seed)}, file)
            print(f"drew {file}", flush=True)
        points.append(load_file(file)["points"])
    return Paths([each for seed in range(shards) for each in asked(SHARD, seed)], torch.cat(points))


def distance(student: nn.Module, context: Tensor, points: Tensor) -> Tensor:
    """How far the velocities of the student's four steps are from those that would lead to the teacher's points [B, 5, ...]."""
    x, losses = points[:, 0], []
    for i, timestep in enumerate(LEVELS.timesteps):
        step = LEVELS.sigmas[i + 1] - LEVELS.sigmas[i]
        velocity = student(x, torch.full((len(x),), timestep), context)
        losses.append(F.mse_loss(velocity, (points[:, i + 1] - x) / step))
        x = (x + step * velocity).detach()
    return torch.stack(losses).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=Path("models/tiny"))
    parser.add_argument("--out", type=Path, default=Path("build/tiny"))
    parser.add_argument("--lora", type=Path, default=FOLDER / "four-steps.safetensors")
    parser.add_argument("--start", type=Path, help="the four-steps.safetensors of an earlier run, to go on from")
    parser.add_argument("--paths", type=int, default=1000, help=f"of the teacher; a multiple of {SHARD}")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--minutes", type=float, default=math.inf, help="the learning rate ends with them")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--peak-lr", type=float, default=2e-3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1, help="of the order of paths")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    paths = load_paths(args.base, args.out, args.paths // SHARD)
    base = Checkpoint.open(args.base)
    embed, student = Embedder.of(base), attach(base.load_dit(), args.rank)
    if args.start:
        student.load_state_dict(load_file(args.start))
    generator = torch.Generator().manual_seed(args.seed)

    def loss() -> Tensor:
        index = torch.randint(len(paths.asked), (args.batch_size,), generator=generator)
        return distance(student, embed([paths.asked[i][1] for i in index.tolist()]), paths.points[index])

    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(trainable(student), lr=args.peak_lr, betas=(0.9, 0.99), weight_decay=0.0)
    ]
    average = optimise(student, loss, args.out / "four-steps.safetensors", optimizers, args.steps, args.minutes)
    save(average, args.lora, args.base, base.card)


if __name__ == "__main__":
    main()
