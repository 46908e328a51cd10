"""Other words for the scenes of `tiny.scenes` than its templates have, as people type them, in English and Chinese."""

import random
from collections.abc import Mapping, Sequence

from tiny.scenes import COLORS, Scene

SHAPE_WORDS = {
    "circle": ("circle", "ball", "disc", "dot"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "pyramid"),
    "cross": ("cross", "plus", "plus sign"),
}
COLOR_WORDS = {"purple": ("purple", "violet"), "cyan": ("cyan", "turquoise")}
BACKGROUND_WORDS = {"gray": ("gray", "grey")}
MOVES = ["moves", "goes", "travels", "slides", "drifts", "glides", "flies", "floats", "runs", "heads"]
MOVING = [
    "moving",
    "going",
    "traveling",
    "travelling",
    "sliding",
    "drifting",
    "gliding",
    "flying",
    "floating",
    "running",
    "heading",
]
WAYS = {
    "left": ("left", "leftwards", "leftward", "to the left", "towards the left", "to the left side"),
    "right": ("right", "rightwards", "rightward", "to the right", "towards the right", "to the right side"),
    "up": ("up", "upwards", "upward", "to the top", "towards the top", "toward the upper edge"),
    "down": ("down", "downwards", "downward", "to the bottom", "towards the bottom", "toward the lower edge"),
}
SIZES = ("", "", "", "", "small ", "little ", "big ", "bright ")
ENGLISH = (
    "{article} {size}{color} {shape} {moves} {way} on a {background} background",
    "{article} {size}{color} {shape} {moving} {way} on a {background} background.",
    "{article} {size}{color} {shape} {moves} {way} on {background}",
    "{article} {size}{color} {shape} {moves} {way}, {background} background",
    "{article} {size}{color} {shape} is {moving} {way} over a {background} background",
    "{size}{color} {shape} {moving} {way}, {background} background",
    "{size}{color} {shape} {moves} {way} against a {background} background",
    "{article} {size}{color} {shape} slowly {moves} {way} in front of a {background} background",
    "{article} {size}{color} {shape} that {moves} {way} across a {background} background",
    "on a {background} background {article} {size}{color} {shape} {moves} {way}",
    "on a {background} background, {article} {size}{color} {shape} is {moving} {way}",
    "a video of {article} {size}{color} {shape} {moving} {way} on a {background} background",
    "a {background} background with {article} {size}{color} {shape} {moving} {way}",
)

CHINESE_SHAPES = {
    "circle": ("圆形", "圆", "圆圈", "球", "圆球", "小球"),
    "square": ("方块", "方形", "正方形", "盒子", "方框"),
    "triangle": ("三角形", "三角"),
    "cross": ("十字", "十字形", "加号", "十字架"),
}
CHINESE_MOVES = ["移动", "运动", "滑动", "滑行", "飘动", "飘", "走", "飞", "飞行", "前进", "移"]
CHINESE_WAYS = {
    "left": ("左", "左边", "左侧", "左方"),
    "right": ("右", "右边", "右侧", "右方"),
    "up": ("上", "上方", "上面", "顶部"),
    "down": ("下", "下方", "下面", "底部"),
}
CHINESE_TO = ("向", "往", "朝", "朝着")
CHINESE_BACKGROUNDS = {"black": "黑色", "gray": "灰色", "white": "白色", "pink": "粉色"}
CHINESE = (
    "一个{color}的{shape}在{background}背景上{to}{way}{moves}",
    "一个{color}{shape}在{background}背景上{to}{way}{moves}",
    "{background}背景上，一个{color}{shape}{to}{way}{moves}",
    "{background}背景，{color}{shape}{to}{way}{moves}",
    "{color}的{shape}{to}{way}{moves}，{background}背景",
    "{color}{shape}在{background}的背景上慢慢{to}{way}{moves}",
    "背景是{background}，一个{color}的{shape}{to}{way}{moves}",
    "一个{color}{shape}{to}{way}{moves}，背景为{background}",
    "在{background}背景前，{color}的{shape}正{to}{way}{moves}。",
)


def _one(words: Mapping[str, Sequence[str]], name: str, rng: random.Random) -> str:
    return rng.choice(words.get(name, (name,)))


def english(scene: Scene, rng: random.Random) -> str:
    size, color = rng.choice(SIZES), _one(COLOR_WORDS, scene.color, rng)
    article = rng.choice(("the", "an" if (size + color)[0] in "aeiou" else "a"))
    return rng.choice(ENGLISH).format(
        article=article, size=size, color=color, shape=_one(SHAPE_WORDS, scene.shape, rng),
        moves=rng.choice(MOVES), moving=rng.choice(MOVING), way=_one(WAYS, scene.direction, rng),
        background=_one(BACKGROUND_WORDS, scene.background, rng),
    )  # fmt: skip


def chinese(scene: Scene, rng: random.Random) -> str:
    return rng.choice(CHINESE).format(
        color=rng.choice((COLORS[scene.color][0], COLORS[scene.color][0][0])), shape=_one(CHINESE_SHAPES, scene.shape, rng),
        to=rng.choice(CHINESE_TO), way=_one(CHINESE_WAYS, scene.direction, rng), moves=rng.choice(CHINESE_MOVES),
        background=CHINESE_BACKGROUNDS[scene.background],
    )  # fmt: skip


def new_pieces() -> list[str]:
    """Words, and Chinese characters in words, that the vocabulary of the templates is to learn; ▁ begins a word of English."""
    words = " ".join((*MOVES, *MOVING, *ENGLISH, *SIZES, *sum((*WAYS.values(), *SHAPE_WORDS.values()), ())))
    words += " " + " ".join(sum((*COLOR_WORDS.values(), *BACKGROUND_WORDS.values()), ()))
    found = ["▁" + word.strip(".,") for word in words.split() if "{" not in word]
    found += sum((*CHINESE_SHAPES.values(), *CHINESE_WAYS.values()), ()) + tuple(CHINESE_MOVES) + CHINESE_TO
    found += [to + way[0] for to in CHINESE_TO for ways in CHINESE_WAYS.values() for way in (ways[0],)]
    found += [c for word in (*CHINESE, *found) for c in word if "一" <= c <= "鿿"]
    return list(dict.fromkeys(found))
