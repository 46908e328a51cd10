import pytest

from contract import Geometry

WAN22 = Geometry(latent_channels=48, spatial_stride=16)


def test_official_sizes_have_their_latents_and_tokens():
    assert Geometry().latent_shape(832, 480, 81) == (16, 21, 60, 104)
    assert Geometry().tokens(832, 480, 81) == 32760
    assert WAN22.latent_shape(1280, 704, 121) == (48, 31, 44, 80)
    assert WAN22.tokens(1280, 704, 121) == 27280


def test_frames_and_latent_frames_are_inverse():
    for geometry in (Geometry(), Geometry(temporal_stride=8)):
        assert [geometry.latent_frames(geometry.num_frames(n)) for n in range(1, 30)] == list(range(1, 30))


@pytest.mark.parametrize(("frames", "longest"), [(0.2, 1), (3.9, 1), (4, 5), (16, 17), (19.9, 17), (80, 81)])
def test_the_longest_clip_is_not_longer_than_asked_but_for_the_first_frame(frames, longest):
    assert Geometry().longest(frames) == longest


@pytest.mark.parametrize(("geometry", "pixels", "nearest"), [(Geometry(), 70, 64), (WAN22, 70, 64), (WAN22, 3, 32)])
def test_the_nearest_side_is_a_multiple_of_what_a_token_covers(geometry, pixels, nearest):
    assert geometry.nearest_side(pixels) == nearest


@pytest.mark.parametrize(
    ("picture", "area", "size"),
    [
        # diffusers' examples: the root is rounded, then cut
        ((1920, 1080), 480 * 832, (832, 464)),
        ((1080, 1920), 480 * 832, (464, 832)),
        ((1000, 1000), 480 * 832, (624, 624)),
        ((640, 480), 480 * 832, (720, 544)),
        ((832, 480), 480 * 832, (832, 480)),
        ((832, 480), 720 * 1280, (1264, 720)),
        ((1600, 400), 720 * 1280, (1920, 480)),
        ((8000, 1000), 720 * 1280, (2048, 336)),  # no side above the longest
        ((16, 128), 64 * 64, (16, 176)),
    ],
)
def test_a_size_like_a_picture_has_its_shape_and_the_area_of_the_model(picture, area, size):
    assert Geometry().size_like(*picture, area, 2048) == size
