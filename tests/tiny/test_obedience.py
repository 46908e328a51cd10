import random

import pytest
import torch

from tiny.obedience import check, held_out_prompts
from tiny.scenes import CHINESE, COLORS, ENGLISH, HELD_OUT, SCENES, TRAINING, Scene, render
from wan.pipeline import to_uint8


def drawn(scene: Scene, seed: int = 0, noise: float = 0.06):
    generator = torch.Generator().manual_seed(seed)
    video = render([scene], generator)[0]
    return to_uint8((video + noise * torch.randn(video.shape, generator=generator)).clamp(-1, 1)).numpy()


def test_every_kind_of_scene_is_recognised_in_a_noisy_drawing():
    scenes = random.Random(0).sample(SCENES, 60)
    assert [str(v) for v in (check(drawn(s, i), s) for i, s in enumerate(scenes)) if not v.obeys] == []


@pytest.mark.parametrize(
    ("attribute", "other"), [("shape", "cross"), ("color", "blue"), ("direction", "up"), ("background", "pink")]
)
def test_one_wrong_attribute_is_noticed_and_named(attribute, other):
    shown = Scene("circle", "red", "left", "black")
    asked = Scene(**(vars(shown) | {attribute: other}))
    verdict = check(drawn(shown), asked)
    assert verdict.wrong == [attribute]


def test_a_still_object_has_no_direction():
    scene = Scene("circle", "red", "left", "black")
    frames = drawn(scene)
    assert check(frames[:1].repeat(17, axis=0), scene).wrong == ["direction"]


def test_noise_and_an_empty_picture_obey_nothing():
    scene = Scene("circle", "red", "left", "black")
    noise = torch.randint(
        0, 256, (17, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    ).numpy()
    assert not check(noise, scene).obeys
    assert check(noise * 0, scene).shape is None


def test_held_out_scenes_share_nothing_with_training_but_every_attribute():
    assert not set(HELD_OUT) & set(TRAINING)
    assert len(HELD_OUT) >= 60
    for attribute in ("shape", "color", "direction", "background"):
        assert {getattr(s, attribute) for s in HELD_OUT} == {getattr(s, attribute) for s in TRAINING}


def test_prompts_alternate_between_both_languages():
    prompts = [prompt for _, prompt in held_out_prompts(6)]
    assert [prompt.isascii() for prompt in prompts] == [True, False] * 3


def test_templates_name_every_attribute():
    scene = Scene("cross", "cyan", "down", "gray")
    for template in ENGLISH:
        assert all(word in scene.english(template) for word in vars(scene).values())
    for template in CHINESE:
        assert all(word in scene.chinese(template) for word in ("十字", COLORS["cyan"][0], "下", "灰色"))
