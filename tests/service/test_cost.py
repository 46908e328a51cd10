"""The cost formula."""

import json
from dataclasses import asdict

import pytest

import wan.cost
from service.cost import CostModel
from service.errors import SettingsError

REQUEST = {"width": 832, "height": 480, "num_frames": 81, "steps": 50, "guidance_scale": 5.0, "cache_threshold": 0.0}


def test_guidance_doubles_and_caching_lowers_the_denoise_time():
    model = CostModel(overhead=0, per_token=1e-5, per_token_squared=1e-9, per_pixel=0)
    full = model.predict(REQUEST)
    assert full == pytest.approx(50 * 2 * (1e-5 * 32760 + 1e-9 * 32760**2))
    assert model.predict(REQUEST | {"guidance_scale": 1.0}) == pytest.approx(full / 2)
    assert model.predict(REQUEST | {"cache_threshold": 0.2}) == pytest.approx(full * 0.7)


def test_the_shipped_coefficients_load_and_grow_with_the_work():
    model = CostModel.load()
    assert model.predict(REQUEST) > 5 * model.predict(REQUEST | {"steps": 5}) > 0


def test_a_broken_file_names_the_setting(tmp_path):
    path = tmp_path / "cost.json"
    path.write_text('{"overhead": 1}')
    with pytest.raises(SettingsError, match="WAN_COST_FILE"):
        CostModel.load(path)


def test_measured_shares_of_computed_steps_are_interpolated():
    shares = {"teacache": [[0.0, 1.0], [0.2, 0.5]], "magcache": [[0.0, 1.0], [0.1, 0.4]]}
    model = CostModel(0, 1e-5, 0, 0, per_skipped_step=0.001, computed_share=shares)
    full = model.predict(REQUEST)
    assert model.predict(REQUEST | {"cache_threshold": 0.1}) == pytest.approx(0.75 * full + 0.25 * 50 * 0.001)
    assert model.predict(REQUEST | {"cache_threshold": 5.0, "cache": "magcache"}) == pytest.approx(
        0.4 * full + 0.6 * 50 * 0.001
    )


def test_guidance_that_ends_early_saves_its_branch():
    model = CostModel(0, 1e-5, 0, 0)
    assert model.predict(REQUEST | {"guidance_end": 0.5}) == pytest.approx(0.75 * model.predict(REQUEST))


def test_a_file_measured_by_the_model_package_is_read(tmp_path):
    path = tmp_path / "cost.json"
    measured = wan.cost.CostModel(0.1, 0.002, 3e-5, 1e-8, 0.001, 1e-6, 4e-6)
    path.write_text(json.dumps(asdict(measured) | {"computed_share": {}, "held_out_error": 0.04}))
    ours = CostModel.load(path).predict(REQUEST)
    assert ours == pytest.approx(measured.predict(832, 480, 81, 50, True))
