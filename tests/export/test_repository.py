import pytest

from export.paths import MODELS
from export.repository import render

VALUES = {"text_len": 512, "text_dim": 4096, "z_dim": 16, "denoise_instances": 3}


def test_every_model_has_its_configuration_with_the_numbers_filled_in_and_its_code(tmp_path):
    render(tmp_path, VALUES)
    for model in MODELS:
        config = (tmp_path / model / "config.pbtxt").read_text()
        assert f'name: "{model}"' in config
        assert "$" not in config
        assert (tmp_path / model / "1" / "model.py").is_file() == (model != "wan_t2v")
    assert "count: 3" in (tmp_path / "denoise" / "config.pbtxt").read_text()
    assert "dims: [ 1, 512, 4096 ]" in (tmp_path / "text_encoder" / "config.pbtxt").read_text()


def test_a_number_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(KeyError, match="z_dim"):
        render(tmp_path, {name: value for name, value in VALUES.items() if name != "z_dim"})
