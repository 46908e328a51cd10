"""Synthetic moving scenes: what they show, how a prompt describes them, how they are drawn.

A scene is one shape of one colour that moves in one direction on one background. `HELD_OUT` scenes never appear in
training, so that the obedience check measures whether the model composes attributes rather than recalls clips.
"""

import hashlib
import itertools
import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

SIZE = 64  # pixels, width and height
FRAMES = 17

SHAPES = {"circle": "圆形", "square": "方块", "triangle": "三角形", "cross": "十字"}
COLORS = {
    "red": ("红色", (0.90, 0.12, 0.12)),
    "green": ("绿色", (0.10, 0.70, 0.15)),
    "blue": ("蓝色", (0.12, 0.25, 0.95)),
    "yellow": ("黄色", (0.98, 0.88, 0.10)),
    "purple": ("紫色", (0.58, 0.12, 0.78)),
    "cyan": ("青色", (0.10, 0.85, 0.88)),
    "orange": ("橙色", (0.98, 0.52, 0.05)),
}
BACKGROUNDS = {
    "black": ("黑色", (0.03, 0.03, 0.03)),
    "gray": ("灰色", (0.45, 0.45, 0.45)),
    "white": ("白色", (0.97, 0.97, 0.97)),
    "pink": ("粉色", (0.98, 0.72, 0.80)),
}
DIRECTIONS = {"left": ("左", (-1, 0)), "right": ("右", (1, 0)), "up": ("上", (0, -1)), "down": ("下", (0, 1))}

ENGLISH = (
    "a {color} {shape} moves {direction} on a {background} background",
    "A {color} {shape} moving {direction} on a {background} background.",
    "{color} {shape} moving {direction}, {background} background",
    "on a {background} background a {color} {shape} moves {direction}",
    "the {color} {shape} goes {direction} over a {background} background",
    "a {background} background with a {color} {shape} that moves {direction}",
)
CHINESE = (
    "一个{color}的{shape}在{background}背景上向{direction}移动",
    "{background}背景上，一个{color}{shape}向{direction}移动",
    "{color}的{shape}向{direction}运动，{background}背景",
    "在{background}的背景上，{color}{shape}正在向{direction}移动。",
    "一个{color}{shape}向{direction}移动，背景是{background}",
)


@dataclass(frozen=True)
class Scene:
    shape: str
    color: str
    direction: str
    background: str

    def english(self, template: str = ENGLISH[0]) -> str:
        return template.format(**vars(self))

    def chinese(self, template: str = CHINESE[0]) -> str:
        return template.format(
            shape=SHAPES[self.shape],
            color=COLORS[self.color][0],
            direction=DIRECTIONS[self.direction][0],
            background=BACKGROUNDS[self.background][0],
        )

    def random_prompt(self, rng: random.Random) -> str:
        return self.english(rng.choice(ENGLISH)) if rng.random() < 0.5 else self.chinese(rng.choice(CHINESE))

    @property
    def held_out(self) -> bool:
        name = "-".join((self.shape, self.color, self.direction, self.background))
        return hashlib.sha256(name.encode()).digest()[0] % 6 == 0


SCENES = tuple(Scene(*parts) for parts in itertools.product(SHAPES, COLORS, DIRECTIONS, BACKGROUNDS))
TRAINING = tuple(s for s in SCENES if not s.held_out)
HELD_OUT = tuple(s for s in SCENES if s.held_out)


def _distance(shape: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Signed distance in pixels from (x, y), y down, to the outline of `shape`; negative inside.

    `radius` is chosen per shape so that all shapes look about equally large.
    """
    if shape == "circle":
        return torch.hypot(x, y) - radius
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.88 * radius
    if shape == "triangle":  # equilateral, tip up, centred on its bounding box's middle
        side, r = math.sqrt(3) / 2, 1.15 * radius
        low = y + 0.25 * r  # shifts the centroid so that the box is centred
        return torch.maximum(low - 0.5 * r, side * x.abs() - 0.5 * low - 0.5 * r)
    x, y, long, short = x.abs(), y.abs(), 1.2 * radius, 0.42 * radius  # a plus sign: two bars
    return torch.minimum(torch.maximum(x - long, y - short), torch.maximum(x - short, y - long))


def coverage(shape: str, cx: Tensor, cy: Tensor, radius: Tensor, size: int = SIZE) -> Tensor:
    """Share of each pixel covered by the shape, [*batch, size, size] in 0..1, for centres and radii of shape [*batch]."""
    grid = torch.arange(size, dtype=torch.float32) + 0.5
    x = grid.view(1, -1) - cx[..., None, None]
    y = grid.view(-1, 1) - cy[..., None, None]
    return (0.5 - _distance(shape, x, y, radius[..., None, None])).clamp(0, 1)


def _path(u: Tensor, room: Tensor, from_middle: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Start and length of the way along the direction, and the offset across it, for random `u` [3] in 0..1."""
    if from_middle:
        start, across = room / 2 + (u[1:] - 0.5) * room / 4
        return start, (0.75 + 0.25 * u[0]) * (room - start), across
    travel = (0.9 + 0.1 * u[0]) * room
    return u[1] * (room - travel), travel, room / 2 + (u[2] - 0.5) * room / 2


def render(
    scenes: list[Scene],
    generator: torch.Generator,
    frames: int = FRAMES,
    size: int = SIZE,
    from_middle: bool = False,
    trail: bool = False,
) -> Tensor:
    """Draw one clip per scene, [B, 3, frames, size, size] in [-1, 1].

    The object crosses the picture; its size, its path's distance from the middle and its exact start vary. With
    `from_middle` it goes from about the middle to the border, so that no first frame gives the direction away. With
    `trail` it paints: where it was stays in its colour.
    """
    clips = []
    for scene in scenes:
        u = torch.rand(4, generator=generator)
        radius = (11.5 + u[0]) * size / SIZE
        margin = 1.2 * radius
        start, travel, offset = _path(u[1:], size - 2 * margin, from_middle)
        along = margin + start + travel * torch.linspace(0, 1, frames)
        across = (margin + offset).expand(frames)
        dx, dy = DIRECTIONS[scene.direction][1]
        if dx + dy < 0:
            along = size - along if from_middle else along.flip(0)
        cx, cy = (along, across) if dx else (across, along)
        alpha = coverage(scene.shape, cx, cy, radius.expand(frames), size)  # [T, H, W]
        if trail:
            alpha = alpha.cummax(dim=0).values
        color = torch.tensor(COLORS[scene.color][1]).view(3, 1, 1, 1)
        background = torch.tensor(BACKGROUNDS[scene.background][1]).view(3, 1, 1, 1)
        clips.append(background + alpha * (color - background))
    return torch.stack(clips) * 2 - 1
