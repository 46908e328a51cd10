import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from contract.errors import InvalidRequest
from wan.pictures import clip_pixels, fit, to_signed


def test_a_picture_of_the_right_size_is_untouched():
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    assert np.array_equal(fit(picture, 48, 32), picture)


def test_a_picture_covers_the_frame_and_what_overhangs_is_cut_off_on_both_sides():
    wide = np.zeros((40, 200, 3), np.uint8)
    wide[:, 80:120] = 255  # the square in the middle
    assert fit(wide, 40, 40).min() == 255
    assert fit(wide.transpose(1, 0, 2), 20, 20)[5:-5, 5:-5].min() == 255


def test_any_shape_of_picture_becomes_the_frame():
    for size in ((1, 1), (3000, 1), (1, 3000), (17, 31)):
        assert fit(Image.new("RGB", size, (10, 20, 30)), 48, 32).tolist() == [[[10, 20, 30]] * 48] * 32


def test_clip_sees_what_its_own_processor_makes_of_a_square_picture():
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    processor = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    expected = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(clip_pixels(picture, 56), expected, rtol=0, atol=1e-5)


def test_bytes_become_signed():
    frames = np.array([[[[0, 127, 255]]]], np.uint8)
    assert torch.allclose(to_signed(frames)[0, :, 0, 0, 0], torch.tensor([-1, 127 / 127.5 - 1, 1]))


def test_what_is_no_picture_is_refused():
    for wrong in (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InvalidRequest, match=r"allowed: uint8 \[H, W, 3\]"):
            fit(wrong, 16, 16)
