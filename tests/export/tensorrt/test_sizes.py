import pytest

from contract import Defaults, ModelCard
from export.tensorrt.sizes import OFFICIAL, SizeError, parse_sizes, vae_profiles
from export.tensorrt.vae_cache import decoder_slots
from stages.trt_plans import check_size, profile_index
from wan.config import VAEConfig
from wan.errors import InvalidRequest

VAE = VAEConfig()


def test_official_models_get_480p_and_720p_in_both_orientations():
    assert parse_sizes(None, None, ModelCard()).fixed == OFFICIAL
    assert parse_sizes(None, None, ModelCard(defaults=Defaults(width=64, height=48))).fixed == ((64, 48), (48, 64))


def test_a_range_comes_after_the_exact_profiles():
    sizes = parse_sizes("832x480", "256x256:1280x1280", ModelCard())
    profiles = vae_profiles(sizes, VAE, decoder_slots(VAE), first=False)
    assert [profile.name for profile in profiles] == ["832x480", "range"]
    exact, spread = (profile.shapes["LATENTS"] for profile in profiles)
    assert exact.min == exact.opt == exact.max == (1, 16, 1, 60, 104)
    assert (spread.min, spread.max) == ((1, 16, 1, 32, 32), (1, 16, 1, 160, 160))
    assert profiles[0].shapes["CACHE_31"].opt == (1, 96, 2, 480, 832)
    assert sizes.largest == (1280, 1280)


def test_encoder_profiles_are_in_pixels():
    (profile,) = vae_profiles(parse_sizes("480x832", None, ModelCard()), VAE, [], first=True, encoder=True)
    assert profile.shapes == {"FRAMES": profile.shapes["FRAMES"]}
    assert profile.shapes["FRAMES"].opt == (1, 3, 1, 832, 480)


@pytest.mark.parametrize(("sizes", "size_range", "message"), [
    ("832x481", None, "size is '832x481'; allowed: WIDTHxHEIGHT, each a multiple of 16"),
    ("big", None, "size is 'big'"),
    (None, "256x256", "allowed: SMALLEST:LARGEST"),
    (None, "512x512:256x256", "512x512 is not smaller"),
])  # fmt: skip
def test_impossible_sizes_are_refused(sizes, size_range, message):
    with pytest.raises(SizeError, match=message):
        parse_sizes(sizes, size_range, ModelCard())


def test_requests_are_held_to_the_sizes_of_the_plans():
    sizes = parse_sizes("832x480", "256x256:512x512", ModelCard()).described()
    with pytest.raises(InvalidRequest, match=r"width x height is '480x832'; allowed: 832x480, 256x256 to 512x512"):
        check_size(480, 832, sizes)
    for width, height in ((832, 480), (320, 512)):
        check_size(width, height, sizes)
    check_size(480, 832, None)


def test_the_first_profile_that_allows_the_shapes_is_used():
    plan = {"profiles": [
        {"name": "a", "shapes": {"LATENTS": {"min": [1, 8], "opt": [1, 8], "max": [1, 8]}}},
        {"name": "b", "shapes": {"LATENTS": {"min": [1, 4], "opt": [1, 8], "max": [1, 16]}}},
    ]}  # fmt: skip
    assert profile_index(plan, {"LATENTS": (1, 8)}) == 0
    assert profile_index(plan, {"LATENTS": (1, 5)}) == 1
    with pytest.raises(InvalidRequest, match=r"LATENTS is \[1, 17\]; allowed: \[1, 8\], \[1, 4\] to \[1, 16\]"):
        profile_index(plan, {"LATENTS": (1, 17)})
