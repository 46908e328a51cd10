import pytest
import torch

import wan
from contract import Defaults, Geometry, ModelCard
from tests.wan.reference import relative_error
from wan.denoise import Conditioning, Denoiser, Expert, Resume
from wan.samplers import SamplerState
from wan.teacache import TeaCacheModel

CARD = ModelCard(
    defaults=Defaults(
        width=32, height=32, num_frames=5, steps=6, guidance_scale=3.0, flow_shift=3.0, negative_prompt=""
    )
)
CACHE = TeaCacheModel((0.25,))  # every step adds a quarter, so that 0.6 skips two of three


@pytest.fixture(scope="module")
def dit(checkpoint):
    return wan.load_dit(checkpoint)


@pytest.fixture(scope="module")
def texts(dit):
    context = torch.randn(2, 512, dit.config.text_dim, generator=torch.Generator().manual_seed(0))
    context[0, 11:] = 0
    context[1, 2:] = 0
    return context


def request(**given):
    return CARD.request(prompt="a cat", **({"seed": 5} | given))


def denoise(dit, text, negative, asked, cache=None, **options):
    caches = {} if cache is None else {"teacache": cache}
    return Denoiser((Expert(dit, caches),), Geometry()).run(Conditioning(text, negative), asked, **options)


def test_the_same_seed_gives_identical_latents_and_another_seed_others(dit, texts):
    first, _ = denoise(dit, *texts, request())
    second, _ = denoise(dit, *texts, request())
    other, _ = denoise(dit, *texts, request(seed=6))
    assert torch.equal(first, second)
    assert not torch.allclose(first, other, atol=0.1)


def test_guidance_one_needs_no_negative_prompt(dit, texts):
    with_negative, _ = denoise(dit, *texts, request(guidance_scale=1.0))
    without, _ = denoise(dit, texts[0], None, request(guidance_scale=1.0))
    assert torch.equal(with_negative, without)


def test_branches_one_after_the_other_give_the_same_as_both_at_once(dit, texts, monkeypatch):
    together, _ = denoise(dit, *texts, request())
    monkeypatch.setattr("wan.evaluator.MAX_BATCHED_TOKENS", 0)
    apart, _ = denoise(dit, *texts, request())
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", ["unipc", "euler", "dpm++"])
@pytest.mark.parametrize("threshold", [0.0, 0.6])
def test_resuming_at_any_resumable_step_is_bit_identical(dit, texts, sampler, threshold):
    points, asked = [], request(sampler=sampler, cache_threshold=threshold)

    def collect(progress):
        if progress.resumable:
            tensors = {name: t.clone() for name, t in progress.state.tensors().items()}
            points.append(Resume(progress.step, SamplerState.from_tensors(tensors)))

    whole, info = denoise(dit, *texts, asked, cache=CACHE, on_step=collect)
    assert points
    assert info.steps_skipped > 0 if threshold else info.steps_skipped == 0
    for point in points:
        continued, resumed = denoise(dit, *texts, asked, cache=CACHE, resume=point)
        assert torch.equal(continued, whole)
        assert resumed.resumed_from == point.step


def test_no_step_before_a_skipped_one_is_offered_for_resuming(dit, texts):
    seen = []
    denoise(dit, *texts, request(steps=12, cache_threshold=0.6), cache=CACHE, on_step=seen.append)
    for now, then in zip(seen, seen[1:], strict=False):
        assert now.resumable == then.computed
    assert not seen[-1].resumable


def test_a_schedule_that_was_cut_short_runs_only_the_rest(dit, texts):
    asked, seen = request(sampler="euler", guidance_end=0.5), []
    whole, _ = denoise(dit, *texts, asked, on_step=seen.append)
    rest = Denoiser((Expert(dit),), Geometry()).schedule(asked).truncated(3)
    later = request(sampler="euler", guidance_scale=1.0)  # the first half had the guidance
    continued, info = denoise(dit, *texts, later, schedule=rest, latents=seen[2].state.latents, on_step=seen.append)
    assert relative_error(continued, whole) < 1e-5
    assert (seen[-1].step, seen[-1].steps, info.steps_computed) == (3, 3, 3)
    _, half = denoise(dit, *texts, asked, schedule=rest)
    assert half.forwards == 2 + 2 + 1  # guidance for half of the steps that run, rounded up


def test_progress_reports_every_step_once(dit, texts):
    seen = []
    latents, info = denoise(dit, *texts, request(), on_step=seen.append)
    assert [p.step for p in seen] == [1, 2, 3, 4, 5, 6]
    assert torch.equal(seen[-1].state.latents, latents)
    assert info.steps_computed == 6
    assert len(info.step_seconds) == 6


def test_an_exception_in_the_hook_stops_the_loop(dit, texts):
    def stop(progress):
        if progress.step == 3:
            raise wan.Cancelled("enough")

    with pytest.raises(wan.Cancelled, match="enough"):
        denoise(dit, *texts, request(), on_step=stop)


def test_a_threshold_without_a_polynomial_is_refused(dit, texts):
    with pytest.raises(wan.InvalidRequest, match="cache_threshold is 0.2; allowed: 0, as this checkpoint has no"):
        denoise(dit, *texts, request(cache_threshold=0.2))


def test_latents_and_resume_points_that_do_not_fit_are_refused(dit, texts):
    with pytest.raises(wan.InvalidRequest, match="latents shape"):
        denoise(dit, *texts, request(), latents=torch.zeros(16, 2, 8, 8))
    state = SamplerState(torch.zeros(16, 2, 4, 4))
    with pytest.raises(wan.InvalidRequest, match="checkpoint step is 6"):
        denoise(dit, *texts, request(), resume=Resume(6, state))
    with pytest.raises(wan.InvalidRequest, match="checkpoint latents shape"):
        denoise(dit, *texts, request(), resume=Resume(2, SamplerState(torch.zeros(1))))


def test_euler_runs_all_steps_of_a_clip_from_the_level_of_its_strength(dit):
    asked = request(steps=4, sampler="euler", strength=0.5, flow_shift=5.0)
    schedule = Denoiser((Expert(dit),), Geometry()).schedule(asked, of_clip=True)
    assert schedule.steps == 4
    assert schedule.sigmas[0] == pytest.approx(0.8333, abs=1e-4)


def test_a_strength_that_leaves_no_step_is_refused(dit):
    denoiser = Denoiser((Expert(dit),), Geometry())
    for sampler, strength in (("unipc", 0.2), ("dpm++", 0.0), ("euler", 0.0)):
        with pytest.raises(wan.InvalidRequest, match="strength"):
            denoiser.schedule(request(steps=4, sampler=sampler, strength=strength), of_clip=True)
