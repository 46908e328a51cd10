from dataclasses import replace

import pytest

from contract import Defaults, Geometry, ModelCard
from contract.cost import CostModel
from wan.cost import LARGEST_TOKENS, Measurement, default_sizes, errors, fit, measure, plan_table
from wan.pipeline import Pipeline

GEOMETRY = Geometry()
tokens = GEOMETRY.tokens

TRUE = CostModel(
    overhead=0.5, per_step=0.004, per_token=3e-5, per_token_squared=2e-8, per_skipped_step=0.001, per_skipped_token=1e-6,
    per_pixel=4e-6, per_pixel_squared=1e-11, per_latent_frame=0.02,
)  # fmt: skip
SIZES = [(64, 64, 17), (64, 128, 17), (128, 128, 9), (128, 128, 33), (832, 480, 81)]


def measurement(size, branches, noise=1.0):
    length = tokens(*size)
    seconds = (TRUE.step(length, branches, True) * noise, TRUE.step(length, branches, False))
    return Measurement(size, branches, *seconds, decode=TRUE.decoding(*size, GEOMETRY), encode=0.5)


def test_sequence_length_of_the_official_size():
    assert tokens(832, 480, 81) == 32760


def test_fit_recovers_the_coefficients_and_predicts_held_out_shapes():
    noise = [1.03, 0.98]
    model = fit([measurement(size, b, noise[i % 2]) for i, size in enumerate(SIZES) for b in (1, 2)], GEOMETRY)
    held_out = [measurement(size, b) for size in [(96, 96, 17), (1280, 720, 81)] for b in (1, 2)]
    assert max(errors(model, held_out, 20, GEOMETRY)) < 0.1
    assert model.overhead == pytest.approx(0.5, rel=1e-3)
    assert model.per_pixel == pytest.approx(4e-6, rel=1e-3)
    assert model.per_pixel_squared == pytest.approx(1e-11, rel=1e-3)


def test_no_coefficient_is_negative_however_the_times_fall():
    falling = [Measurement(size, 1, 1.0 / (i + 1), 0.1, 0.1, 0.1) for i, size in enumerate(SIZES)]
    assert min(v for v in vars(fit(falling, GEOMETRY)).values() if isinstance(v, float)) >= 0


def test_the_plan_and_the_guided_steps_are_priced_exactly():
    size = (64, 64, 17)
    full = TRUE.seconds(size, [(True, 2)] * 4, GEOMETRY)
    length = tokens(*size)
    saved = TRUE.step(length, 2, True) - TRUE.step(length, 2, False)
    skipping = [(True, 2), (False, 2), (False, 2), (True, 2)]
    assert TRUE.seconds(size, skipping, GEOMETRY) == pytest.approx(full - 2 * saved)
    one_branch = TRUE.step(length, 2, True) - TRUE.step(length, 1, True)
    request = dict(zip(("width", "height", "num_frames"), size)) | {
        "steps": 4, "guidance_scale": 3.0, "guidance_end": 0.75, "cache": "teacache", "cache_threshold": 0.0,
        "cache_start": 0.0, "cache_end": 1.0,
    }  # fmt: skip
    assert TRUE.predict(request, GEOMETRY) == pytest.approx(full - one_branch)


def test_a_request_that_is_measured_as_predicted_has_no_error():
    one = measurement((64, 64, 17), 2)
    assert errors(TRUE, [one], 20, GEOMETRY) == pytest.approx([0, 0], abs=1e-12)
    slower = replace(one, decode=one.decode + 0.1 * one.request(20, 20))
    assert errors(TRUE, [slower], 20, GEOMETRY)[0] == pytest.approx(1 - 1 / 1.1)


@pytest.fixture(scope="module")
def pipeline(checkpoint):
    return Pipeline.from_checkpoint(checkpoint)


def test_measuring_times_both_kinds_of_steps_for_every_size_and_guidance(pipeline):
    sizes = [(32, 32, 5), (192, 192, 9)]
    found = measure(pipeline, sizes, repeats=2)
    assert [(m.size, m.branches) for m in found] == [(size, branches) for size in sizes for branches in (1, 2)]
    small, large = found[0], found[3]
    assert 0 < large.skipped < large.computed
    assert 0 < small.decode < large.decode
    assert small.computed < large.computed


def test_the_table_holds_the_plan_of_every_threshold(pipeline):
    steps = pipeline.card.defaults.steps
    table = plan_table(pipeline, step_counts=(10,), thresholds=(0.05, 0.1, 0.2))
    assert set(table) == {"teacache", "magcache"}
    assert set(table["teacache"]) == {10, steps}
    plan = pipeline.denoiser.plan(pipeline.card.request(prompt="x", cache="teacache", cache_threshold=0.2))
    assert table["teacache"][steps][0.2] == "".join("01"[step.computed] for step in plan)


@pytest.mark.parametrize("default", [(64, 64, 17), (832, 480, 81), (1280, 720, 81)])
def test_default_sizes_may_be_asked_for_and_stay_apart(default):
    width, height, frames = default
    fitted, held_out = default_sizes(ModelCard(defaults=Defaults(width=width, height=height, num_frames=frames)))
    assert len({*fitted, *held_out}) == len(fitted) + len(held_out)
    for w, h, t in [*fitted, *held_out]:
        ModelCard().request(prompt="x", width=w, height=h, num_frames=t)
    smallest, largest = (min(tokens(*size) for size in fitted), max(tokens(*size) for size in fitted))
    assert all(smallest <= tokens(*size) <= largest for size in held_out)
    assert LARGEST_TOKENS <= largest <= max(4 * LARGEST_TOKENS, tokens(*default))
