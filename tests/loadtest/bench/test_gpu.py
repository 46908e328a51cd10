"""The hour on a GPU in its small form, on a CPU: every part runs, what was done is not done again."""

import json

import pytest
import torch

from loadtest.__main__ import main
from loadtest.bench import gpu
from loadtest.bench.checks import Check


@pytest.mark.slow
def test_everything_is_checked_and_timed_and_a_second_run_only_reports(tmp_path, capsys, monkeypatch):
    arguments = ["gpu", "--device", "cpu", "--out", str(tmp_path)]
    assert main([*arguments, "--minutes", "0"]) == 1
    assert "5 measurements are left" in capsys.readouterr().out

    assert main(arguments) == 0
    done = json.loads((tmp_path / "gpu.json").read_text())["done"]
    engines = [found["engine"] for name, found in done.items() if name.startswith("denoise")]
    assert [engine["linear"] for engine in engines] == ["onednn", "fp8", "fp8"]
    assert engines[2]["attention"] == "int8-fp8"
    assert all(found["seconds"] > 0 for name, found in done.items() if not name.startswith("checks"))
    rows = {row["name"]: row for row in done["checks small 64x64x5"]["rows"]}
    assert rows["int8 attention, 32 tokens, 2 heads"]["right"]
    assert "needs a CUDA GPU" in rows["flash3 attention, 32 tokens, 2 heads"]["missing"]
    assert "nothing to fill in" in (tmp_path / "gpu.md").read_text()

    monkeypatch.setattr(gpu, "measure", lambda job: 1 / 0)
    assert main(arguments) == 0


def test_a_computation_that_is_wrong_or_fails_is_no_success():
    def fails():
        raise RuntimeError("no kernel image")

    wrong, failed = Check("a", 0.1, lambda: 0.2).row(), Check("b", 0.1, fails).row()
    assert (wrong["right"], failed["right"]) == (False, False)
    done = {"checks": {"rows": [wrong, failed]}}
    assert not gpu.all_right(done)
    assert "WRONG" in gpu.report("NVIDIA H200", done, 0)
    assert "no kernel image" in gpu.report("NVIDIA H200", done, 0)
    assert Check("c", 0.1, lambda: float(torch.nan)).row()["right"] is False


def test_a_gpu_fills_rows_of_the_readme():
    done = {"denoise t2v-14b, lossless": {"seconds": 130.0, "steps": 40, "share_of_peak": 0.5, "bytes": 6e10}}
    text = gpu.report("NVIDIA H200", done, 0)
    assert "| NVIDIA H200 | denoise t2v-14b, lossless: 130.0 s |" in text
    assert "50 %" in text
