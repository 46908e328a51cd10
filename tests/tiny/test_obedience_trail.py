import random

import torch

from tiny.obedience_trail import check_trail
from tiny.scenes import SCENES, render
from wan.pipeline import to_uint8


def test_a_drawn_trail_is_seen_and_its_object_recognised_and_without_one_nothing_paints():
    generator = torch.Generator().manual_seed(0)
    for scene in random.Random(0).sample(SCENES, 12):
        for trail in (True, False):
            video = render([scene], generator, trail=trail)[0]
            noisy = (video + 0.06 * torch.randn(video.shape, generator=generator)).clamp(-1, 1)
            verdict = check_trail(to_uint8(noisy).numpy(), scene)
            assert (verdict.motion.obeys, verdict.paints) == (True, trail), str(verdict)


def test_a_wrong_shape_under_a_trail_is_noticed():
    shown = next(s for s in SCENES if s.shape == "cross")
    asked = next(
        s
        for s in SCENES
        if (s.shape, s.color, s.direction, s.background) == ("circle", shown.color, shown.direction, shown.background)
    )
    video = render([shown], torch.Generator().manual_seed(0), trail=True)[0]
    assert check_trail(to_uint8(video).numpy(), asked).motion.wrong == ["shape"]
