import pytest

from wan.cost import CostModel, Measurement, errors, fit, tokens
from wan.request import GenerationRequest

TRUE = CostModel(
    overhead=0.5, per_step=0.004, per_token=3e-5, per_token_squared=2e-8, per_skipped_step=0.001, per_skipped_token=1e-6,
    per_pixel=4e-6,
)  # fmt: skip
SIZES = [(64, 64, 17), (64, 128, 17), (128, 128, 9), (128, 128, 33), (832, 480, 81)]


def measurement(size, branches, noise=1.0):
    length = tokens(*size)
    seconds = (TRUE.step(length, branches, True) * noise, TRUE.step(length, branches, False))
    return Measurement(size, branches, *seconds, decode=0.2 + TRUE.per_pixel * size[0] * size[1] * size[2], encode=0.3)


def test_sequence_length_of_the_official_size():
    assert tokens(832, 480, 81) == 32760


def test_fit_recovers_the_coefficients_and_predicts_held_out_shapes():
    noise = [1.03, 0.98]
    model = fit([measurement(size, b, noise[i % 2]) for i, size in enumerate(SIZES) for b in (1, 2)])
    held_out = [measurement(size, b) for size in [(96, 96, 17), (1280, 720, 81)] for b in (1, 2)]
    assert max(errors(model, held_out)) < 0.1
    assert model.overhead == pytest.approx(0.5, rel=1e-3)
    assert model.per_pixel == pytest.approx(4e-6, rel=1e-3)


def test_no_coefficient_is_negative_however_the_times_fall():
    falling = [Measurement(size, 1, 1.0 / (i + 1), 0.1, 0.1, 0.1) for i, size in enumerate(SIZES)]
    assert min(vars(fit(falling)).values()) >= 0


def test_the_plan_and_the_guided_steps_are_priced_exactly():
    size, steps = (64, 64, 17), 4
    full = TRUE.predict(*size, steps, guidance=True)
    length = tokens(*size)
    saved = TRUE.step(length, 2, True) - TRUE.step(length, 2, False)
    assert TRUE.predict(*size, steps, True, plan=(True, False, False, True)) == pytest.approx(full - 2 * saved)
    one_branch = TRUE.step(length, 2, True) - TRUE.step(length, 1, True)
    assert TRUE.predict(*size, steps, guidance=3) == pytest.approx(full - one_branch)
    request = GenerationRequest("a", "", *size, 4, 3.0, 3.0, 0, "unipc", 0.0, guidance_end=0.75)
    assert TRUE.predict_request(request) == pytest.approx(full - one_branch)
