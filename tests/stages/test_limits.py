from dataclasses import replace

import pytest

from contract import Defaults, Geometry, InvalidRequest, ModelCard
from stages.limits import Limits

CARD = ModelCard(defaults=Defaults(width=64, height=64, num_frames=17, steps=20))
REQUEST = CARD.request(prompt="x", seed=0, cache_threshold=0.0)
GIB = 1 << 30


def test_a_cache_without_calibration_is_refused_unless_it_is_off():
    off = replace(REQUEST, cache="magcache")
    Limits(GIB, caches=[]).check(off)
    asked = replace(off, cache_threshold=0.1)
    Limits(GIB, caches=["magcache"]).check(asked)
    with pytest.raises(InvalidRequest, match="CACHE is 'magcache'; allowed: with CACHE_THRESHOLD above 0: teacache"):
        Limits(GIB, caches=["teacache"]).check(asked)


def test_a_video_beyond_the_limit_is_refused_though_each_side_is_allowed():
    Limits(3 * 64 * 64 * 17).check(REQUEST)
    with pytest.raises(InvalidRequest, match=r"WIDTH x HEIGHT x NUM_FRAMES is '64x64x17 = 0 MB.*WAN_MAX_VIDEO_BYTES"):
        Limits(3 * 64 * 64 * 17 - 1).check(REQUEST)


def test_a_size_that_no_plan_was_built_for_is_refused_as_request_and_as_latents():
    limits = Limits(GIB, sizes={"fixed": [[832, 480]], "range": None})
    with pytest.raises(InvalidRequest, match="width x height is '64x64'; allowed: 832x480"):
        limits.check(REQUEST)
    limits.check_latents((16, 5, 60, 104))
    with pytest.raises(InvalidRequest, match="LATENTS is .*width x height is 832x480"):
        limits.check_latents((16, 5, 8, 8))


@pytest.mark.parametrize(
    "shape", [(16, 1, 640, 640), (16, 65, 256, 256), (16, 66, 8, 8), (16, 1, 7, 8), (16, 1, 8, 10_000)]
)
def test_latents_of_a_video_that_nobody_may_ask_for_are_refused(shape):
    with pytest.raises(InvalidRequest, match="LATENTS is .*; allowed: those of a video whose"):
        Limits(GIB).check_latents(shape)


def test_latents_of_every_video_that_may_be_asked_for_are_allowed():
    for width, height, frames in ((16, 16, 1), (2048, 2048, 81), (1280, 720, 257), (16, 2048, 257)):
        request = replace(REQUEST, width=width, height=height, num_frames=frames)
        Limits(GIB).check(request)
        Limits(GIB).check_latents(Geometry().latent_shape(width, height, frames))
