"""The cost formula, and its plans against those of the model itself."""

import json
from dataclasses import asdict, replace

import pytest

from contract.cost import CostModel
from contract.errors import InvalidCard
from contract.geometry import Geometry
from service.errors import SettingsError
from service.settings import DEFAULT_COSTS, load_settings
from tests.conftest import PROJECT_ROOT
from wan.cost import plan_table
from wan.pipeline import Pipeline

WAN21 = Geometry()
REQUEST = {"width": 832, "height": 480, "num_frames": 81, "steps": 50, "guidance_scale": 5.0} | {
    "guidance_end": 1.0, "cache": "teacache", "cache_threshold": 0.0, "cache_start": 0.0, "cache_end": 1.0,
}  # fmt: skip


def test_guidance_doubles_and_caching_lowers_the_denoise_time():
    model = CostModel(overhead=0, per_token=1e-5, per_token_squared=1e-9, per_pixel=0)
    full = model.predict(REQUEST, WAN21)
    assert full == pytest.approx(50 * 2 * (1e-5 * 32760 + 1e-9 * 32760**2))
    assert model.predict(REQUEST | {"guidance_scale": 1.0}, WAN21) == pytest.approx(full / 2)
    assert model.predict(REQUEST | {"cache_threshold": 0.2}, WAN21) == pytest.approx(full * 0.7)


def test_the_shipped_coefficients_load_and_grow_with_the_work():
    model = CostModel.load(DEFAULT_COSTS)
    assert model.predict(REQUEST, WAN21) > 5 * model.predict(REQUEST | {"steps": 5}, WAN21) > 0


def test_a_broken_file_names_the_setting(tmp_path):
    path = tmp_path / "cost.json"
    path.write_text('{"overhead": 1}')
    with pytest.raises(InvalidCard, match="per_token"):
        CostModel.load(path)
    with pytest.raises(SettingsError, match="WAN_COST_FILE"):
        _ = load_settings(cost_file=path).costs


def test_the_plan_of_the_highest_threshold_reached_is_priced():
    plans = {"teacache": {4: {0.1: "1101", 0.2: "1001"}}, "magcache": {4: {0.1: "1100"}}}
    model = CostModel(overhead=0, per_token=1e-5, per_token_squared=0, per_pixel=0, per_skipped_step=0.001, plans=plans)
    request = REQUEST | {"steps": 4}
    full = model.predict(request, WAN21)
    assert model.predict(request | {"cache_threshold": 0.09}, WAN21) == full
    assert model.predict(request | {"cache_threshold": 0.15}, WAN21) == pytest.approx(0.75 * full + 0.001)
    assert model.predict(request | {"cache_threshold": 9.0}, WAN21) == pytest.approx(0.5 * full + 0.002)
    assert model.plan(4, "magcache", 0.2) == [True, True, False, False]
    assert model.plan(8, "teacache", 0.2) == [True] * 2 + [False] * 4 + [True] * 2


def test_a_plan_that_does_not_fit_its_steps_is_refused(tmp_path):
    path = tmp_path / "cost.json"
    coefficients = {"overhead": 0, "per_token": 0, "per_token_squared": 0, "per_pixel": 0}
    path.write_text(json.dumps(coefficients | {"plans": {"teacache": {"4": {"0.1": "11011"}}}}))
    with pytest.raises(InvalidCard, match=r"plans.teacache.4.0.1 is '11011'; allowed: 4 characters 0 or 1"):
        CostModel.load(path)


def test_guidance_that_ends_early_saves_its_branch():
    model = CostModel(overhead=0, per_token=1e-5, per_token_squared=0, per_pixel=0)
    assert model.predict(REQUEST | {"guidance_end": 0.5}, WAN21) == pytest.approx(0.75 * model.predict(REQUEST, WAN21))


MEASURED = CostModel(
    overhead=0.1, per_step=0.002, per_token=3e-5, per_token_squared=1e-8, per_skipped_step=0.001, per_skipped_token=1e-6,
    per_pixel=4e-6,
)  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(checkpoint):
    return Pipeline.from_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def written(pipeline, tmp_path_factory):
    """The service's model from a file as `python -m wan.cost` writes it."""
    path = tmp_path_factory.mktemp("cost") / "cost.json"
    replace(MEASURED, plans=plan_table(pipeline)).write(path, {"held_out_error": 0.04})
    return CostModel.load(path)


def difference(pipeline, written, **given) -> float:
    """Relative difference between the price and what the exact plan of the model costs."""
    request = pipeline.card.request(prompt="a cat", seed=0, **given)
    plan = [(step.computed, step.branches) for step in pipeline.denoiser.plan(request)]
    exact = MEASURED.seconds((request.width, request.height, request.num_frames), plan, WAN21)
    return written.predict(asdict(request), WAN21) / exact - 1


CACHES = [{"cache_threshold": 0.0}] + [
    {"cache": cache, "cache_threshold": threshold}
    for cache in ("teacache", "magcache")
    for threshold in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.6)
]
CACHES += [{"cache": "teacache", "cache_threshold": 0.3, "cache_start": 0.25, "cache_end": 0.8}]
GUIDANCE = [(1.0, 1.0), (3.0, 1.0), (3.0, 0.75), (3.0, 0.5), (3.0, 0.0)]


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("size", [(64, 64, 17), (128, 96, 5), (832, 480, 81)])
def test_service_and_model_package_predict_the_same(pipeline, written, size, steps):
    shape = dict(zip(("width", "height", "num_frames"), size, strict=True)) | {"steps": steps}
    differences = [
        difference(pipeline, written, **shape, **cache, guidance_scale=scale, guidance_end=end)
        for cache in CACHES
        for scale, end in GUIDANCE
    ]
    assert max(map(abs, differences)) < 0.03


@pytest.mark.parametrize("steps", [11, 17, 22, 33, 55])
def test_numbers_of_steps_without_a_stored_plan_are_priced_after_the_nearest(pipeline, written, steps):
    shape = {"width": 832, "height": 480, "num_frames": 81, "steps": steps}
    differences = [difference(pipeline, written, **shape, **cache) for cache in CACHES]
    assert max(map(abs, differences)) < 0.2  # one step more or less of the six that a high threshold leaves
    assert abs(sum(differences)) / len(differences) < 0.05


@pytest.mark.parametrize("path", [DEFAULT_COSTS, PROJECT_ROOT / "k8s/base/pool/cost.json"])
def test_the_shipped_files_name_the_command_that_measures(path):
    assert "python -m wan.cost" in path.read_text()
    model = CostModel.load(path)
    assert model.predict(REQUEST | {"cache_threshold": 0.2}, WAN21) < model.predict(REQUEST, WAN21)
