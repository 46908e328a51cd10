import numpy as np
import pytest

from loadtest.quality import gate, perceptual, report
from loadtest.quality.evaluate import Row

ROW, COLUMN = np.mgrid[0:64, 0:64]
CLIP = np.stack([np.stack([COLUMN * 2 + t, ROW * 3, ROW + COLUMN], -1) for t in range(5)]).astype(np.uint8)


def noisy(amount: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, amount, CLIP.shape)
    return np.clip(CLIP + noise, 0, 255).astype(np.uint8)


def test_an_equal_video_has_the_best_figures_and_worse_ones_have_lower():
    equal, little, much = (perceptual.compare(CLIP, made) for made in (CLIP, noisy(2), noisy(12)))
    assert (round(equal.ms_ssim, 6), equal.xpsnr) == (1, perceptual.IDENTICAL_DB)
    assert equal.vmaf > 97
    for figure in perceptual.FILTERS:
        assert getattr(equal, figure) > getattr(little, figure) > getattr(much, figure)


def test_an_error_in_one_frame_counts_by_its_share():
    made = CLIP.copy()
    made[2] = noisy(30)[2]
    assert perceptual.compare(CLIP, noisy(30)).xpsnr < perceptual.compare(CLIP, made).xpsnr < perceptual.IDENTICAL_DB


def test_an_error_of_colour_alone_is_seen_by_xpsnr():
    made = CLIP.copy()
    made[..., 2] = 255 - made[..., 2]  # blue is 7 % of the luma
    assert perceptual.compare(CLIP, made).xpsnr < 40


def test_videos_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\[4, 64, 64, 3\]; allowed: .*\[5, 64, 64, 3\]"):
        perceptual.compare(CLIP, CLIP[:4])


def test_what_this_ffmpeg_lacks_is_named_left_out_and_not_judged(monkeypatch, tmp_path):
    monkeypatch.setattr(perceptual, "available", lambda: frozenset({"xpsnr"}))
    assert perceptual.lacking() == {"vmaf": "libvmaf", "ms_ssim": "libvmaf"}
    found = perceptual.compare(CLIP, CLIP)
    assert (found.vmaf, found.ms_ssim, found.xpsnr) == (None, None, 99)
    rows = [Row("baseline", "baseline", steps_computed=20), Row("linear=fp8", "linear", xpsnr=40.0, steps_computed=20)]
    assert "| 40.0 |" in report.table(rows)
    assert report.table(rows).count("not measured") == 2
    assert gate.failures(rows, {"linear=fp8": {"vmaf": 90, "xpsnr": 39}}) == []
    report.write(rows, tmp_path, {})
    assert (tmp_path / "quality-xpsnr.svg").exists()
    assert not (tmp_path / "quality-vmaf.svg").exists()
