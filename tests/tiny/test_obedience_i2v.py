import random

import numpy as np
import pytest

from tiny.obedience import check
from tiny.obedience_i2v import clip_of, evaluate, likeness, place
from tiny.scenes import DIRECTIONS, SCENES, Scene

SCENE = Scene("circle", "red", "left", "black")


def noisy(frames: np.ndarray, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 5, frames.shape)
    return (frames + noise).clip(0, 255).astype(np.uint8)


def test_a_noisy_copy_of_the_clip_obeys_and_ends_where_it_should():
    clips = {s.english(): noisy(clip_of(s, i), i) for i, s in enumerate(random.Random(0).sample(SCENES, 20))}
    assert all(likeness(clip[0], clip[0]).enough for clip in clips.values())
    for i, scene in enumerate(random.Random(0).sample(SCENES, 20)):
        clip, drawn = clips[scene.english()], clip_of(scene, i)
        assert check(clip, scene).obeys
        assert likeness(clip[0], drawn[0]).enough
        assert likeness(clip[-1], drawn[-1]).enough


def test_another_start_direction_or_end_is_noticed():
    clip = clip_of(SCENE, 0)
    assert not likeness(clip[0], clip[-1]).enough
    assert not likeness(clip[0], clip_of(SCENE, 3)[0]).enough
    assert not likeness(np.zeros_like(clip[0]), clip[0]).enough
    verdicts = evaluate(lambda prompt, seed, pictures: clip, 4)
    assert not any(v.obeys for v in verdicts)


def test_the_last_frame_counts_where_it_is_given():
    seen = []

    def stands_still(prompt, seed, pictures):
        seen.append(set(pictures))
        return np.repeat(pictures["image"][None], 17, axis=0)

    without, with_last = (evaluate(stands_still, 4, last=last) for last in (False, True))
    assert seen == [{"image"}] * 4 + [{"image", "last_image"}] * 4
    assert [v.motion.wrong for v in without] == [["direction"]] * 4
    assert all(v.first.enough and not v.last.enough for v in with_last)


@pytest.mark.parametrize("background", ["black", "white"])
def test_the_first_frame_does_not_give_the_direction_away(background):
    for direction in DIRECTIONS:
        scene = Scene("square", "blue", direction, background)
        starts = [place(clip_of(scene, seed)[0]) for seed in range(40)]
        assert np.abs(np.mean(starts, 0) - 32).max() < 1.5
