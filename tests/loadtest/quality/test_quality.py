"""The quality gate, small: the shipped floors are checked on a few prompts."""

import json
from pathlib import Path

import numpy as np
import pytest

from loadtest.__main__ import main
from loadtest.base.inputs import LoadTestError
from loadtest.quality import gate, report
from loadtest.quality.evaluate import Row, frame_psnr
from loadtest.quality.settings import DEFAULT, parse
from wan.errors import InvalidRequest

TINY = Path(__file__).parents[3] / "models" / "tiny"


def test_options_become_request_and_loading_parameters():
    setting = parse("magcache=0.2+guidance_end=0.5+attention=int8")
    assert setting.request == {"cache": "magcache", "cache_threshold": 0.2, "guidance_end": 0.5}
    assert setting.loading.attention == "int8"
    assert setting.method == "magcache+guidance_end+attention"


@pytest.mark.parametrize(
    ("text", "message"),
    [("teacash=0.1", "'teacash=0.1' is unknown; allowed: NAME=VALUE"), ("teacache=much", "bad value")],
)
def test_options_that_are_not_understood_are_refused(text, message):
    with pytest.raises(LoadTestError, match=message):
        parse(text)
    with pytest.raises(InvalidRequest):
        parse("linear=int3")


def test_psnr_is_the_mean_over_frames_with_equal_frames_at_99():
    a = np.zeros((2, 4, 4, 3), np.uint8)
    b = a.copy()
    b[1] = 255  # 0 dB
    assert frame_psnr(a, b) == pytest.approx(99 / 2)


def rows():
    baseline = Row(
        "baseline",
        "baseline",
        psnr=99,
        ssim=1,
        obeyed=10,
        checked=10,
        seconds=2.0,
        speed_up=1,
        steps_computed=20,
        forwards=40,
    )
    cached = Row(
        "teacache=0.1",
        "teacache",
        psnr=28,
        ssim=0.9,
        obeyed=9,
        checked=10,
        seconds=1.0,
        speed_up=2,
        steps_computed=10,
        steps_skipped=10,
    )
    return [baseline, cached]


def test_the_gate_names_every_figure_below_its_floor():
    assert gate.failures(rows(), {"teacache=0.1": {"psnr": 25, "obedience": 0.9, "steps_ratio": 2.0}}) == []
    failed = gate.failures(rows(), {"teacache=0.1": {"psnr": 30, "ssim": 0.95, "obedience": 0.95, "steps_ratio": 1.6}})
    assert [f.partition(" is ")[0] for f in failed] == [
        "teacache=0.1: psnr",
        "teacache=0.1: ssim",
        "teacache=0.1: obedience",
    ]


def test_floors_of_an_unknown_figure_are_refused(tmp_path):
    path = tmp_path / "floors.json"
    path.write_text('{"teacache=0.1": {"lpips": 0.1}}')
    with pytest.raises(LoadTestError, match=r"unknown floors \['lpips'\]"):
        gate.load_floors(path)


def test_every_shipped_floor_belongs_to_a_default_set_of_options():
    assert set(gate.load_floors()) <= set(DEFAULT)


def test_the_plot_has_one_line_for_each_method(tmp_path):
    report.write(rows(), tmp_path, {"checkpoint": "x"})
    assert json.loads((tmp_path / "quality.json").read_text())["rows"][1]["psnr"] == 28
    svg = (tmp_path / "quality-psnr.svg").read_text()
    assert svg.startswith("<svg")
    assert "xmlns" in svg
    assert svg.count(">teacache<") == 1
    assert "| teacache=0.1 | 10 + 10 |" in (tmp_path / "quality.md").read_text()


@pytest.mark.skipif(not (TINY / "transformer").is_dir(), reason="models/tiny is not there")
def test_the_shipped_options_hold_their_floors_on_a_few_prompts(tmp_path, capsys):
    options = [name for name in gate.load_floors() if name.startswith(("teacache", "magcache", "linear"))][:3]
    code = main(["quality", *options, "--checkpoint", str(TINY), "--count", "4", "--out", str(tmp_path)])
    output = capsys.readouterr()
    assert code == 0, output.err
    assert "baseline" in output.out
    result = json.loads((tmp_path / "quality.json").read_text())["rows"]
    assert [row["name"] for row in result] == ["baseline", *options]


def test_a_floor_that_is_missed_fails_the_command(tmp_path, checkpoint, capsys):
    floors = tmp_path / "floors.json"
    floors.write_text('{"guidance_end=0.25": {"psnr": 98.9}}')
    arguments = ["guidance_end=0.25", "--checkpoint", str(checkpoint), "--count", "1", "--floors", str(floors)]
    assert main(["quality", *arguments, "--out", str(tmp_path / "out")]) == 1
    assert "guidance_end=0.25: psnr is" in capsys.readouterr().err
    assert main(["quality", "nonsense=1", "--out", str(tmp_path / "out")]) == 2
