import numpy as np
import pytest
import torch

from contract.errors import InvalidRequest
from contract.geometry import Geometry
from wan.known_frames import arrange, channels, chunks, clip_latents, continued, mask, seen_by_clip

GEOMETRY = Geometry()
SIZE = (32, 16, 9)


def frame(value: int) -> np.ndarray:
    return np.full((16, 32, 3), value, np.uint8)


def means(parts):
    """A stand-in for the encoder that keeps each chunk's mean in every channel."""
    for part in parts:
        yield part.mean().expand(1, 16, 1, 2, 4)


def test_the_mask_repeats_the_first_frame_and_puts_the_last_into_the_last_row():
    assert mask([0], 9, GEOMETRY).tolist() == [[1, 0, 0]] * 4
    assert mask([0, 8], 9, GEOMETRY).tolist() == [[1, 0, 0]] * 3 + [[1, 0, 1]]
    assert mask(range(5), 9, GEOMETRY).tolist() == [[1, 1, 0]] * 4


def test_a_video_comes_in_the_encoders_steps_with_grey_for_what_is_unknown():
    parts = list(chunks({0: frame(255), 8: frame(0)}, SIZE, GEOMETRY))
    assert [tuple(part.shape) for part in parts] == [(1, 3, 1, 16, 32), (1, 3, 4, 16, 32), (1, 3, 4, 16, 32)]
    assert torch.cat(parts, dim=2)[0, 0, :, 0, 0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0, -1]


def test_channels_are_the_mask_above_the_latents():
    found = channels({0: frame(255)}, SIZE, GEOMETRY, means)
    assert tuple(found.shape) == (20, 3, 2, 4)
    assert torch.equal(found[:4, :, 0, 0], mask([0], 9, GEOMETRY))
    assert found[4:, :, 0, 0].eq(torch.tensor([1.0, 0, 0])).all()


def test_without_known_frames_all_channels_are_zero():
    assert not channels({}, SIZE, GEOMETRY, means).any()


def test_a_clip_goes_on_from_its_last_frames():
    clip = [frame(i) for i in range(20)]
    known = arrange(None, frame(99), clip, SIZE, GEOMETRY)
    assert {i: int(f[0, 0, 0]) for i, f in known.items()} == {0: 15, 1: 16, 2: 17, 3: 18, 4: 19, 8: 99}
    assert continued(GEOMETRY) == 5
    assert sorted(arrange(None, None, clip[:3], SIZE, GEOMETRY)) == [0]
    assert sorted(arrange(None, None, clip, (32, 16, 1), GEOMETRY)) == [0]


def test_clip_sees_the_first_known_frame_and_for_two_pictures_the_last():
    known = arrange(frame(1), frame(2), None, SIZE, GEOMETRY)
    assert [int(f[0, 0, 0]) for f in seen_by_clip(known, 1)] == [1]
    assert [int(f[0, 0, 0]) for f in seen_by_clip(known, 2)] == [1, 2]
    assert seen_by_clip({}, 1) == []


def test_a_picture_beside_a_clip_and_a_last_frame_without_room_are_refused():
    with pytest.raises(InvalidRequest, match="image is 'given beside video'"):
        arrange(frame(1), None, [frame(2)], SIZE, GEOMETRY)
    with pytest.raises(InvalidRequest, match="last_image is 'given'; allowed: none for a video of one frame"):
        arrange(frame(1), frame(2), None, (32, 16, 1), GEOMETRY)
    with pytest.raises(InvalidRequest, match="video frames is 0; allowed: at least 1"):
        arrange(None, None, [], SIZE, GEOMETRY)


def test_a_clip_to_change_must_be_as_long_as_the_video():
    latents = clip_latents([frame(255)] * 12, SIZE, GEOMETRY, means)
    assert latents.eq(1).all()
    assert tuple(latents.shape) == (16, 3, 2, 4)
    with pytest.raises(InvalidRequest, match="video frames is 8; allowed: at least num_frames, 9"):
        clip_latents([frame(0)] * 8, SIZE, GEOMETRY, means)
