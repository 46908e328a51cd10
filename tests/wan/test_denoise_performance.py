"""What the denoise loop saves, and that saving it changes nothing or only what was asked for."""

import copy

import pytest
import torch

import wan
from contract import Defaults, Geometry, ModelCard
from tests.wan.reference import relative_error
from wan import evaluator as loop
from wan.denoise import Conditioning, Denoiser, Expert
from wan.evaluator import batch_branches
from wan.optimize import Options, optimized
from wan.teacache import TeaCacheModel

CARD = ModelCard(
    defaults=Defaults(
        width=32, height=32, num_frames=5, steps=6, guidance_scale=3.0, flow_shift=3.0, negative_prompt=""
    )
)


@pytest.fixture(scope="module")
def dit(checkpoint):
    return wan.load_dit(checkpoint)


@pytest.fixture(scope="module")
def texts(dit):
    context = torch.randn(2, 512, dit.config.text_dim, generator=torch.Generator().manual_seed(0))
    context[0, 11:], context[1, 2:] = 0, 0
    return context


def request(**given):
    return CARD.request(prompt="a cat", **({"seed": 5} | given))


def denoise(dit, text, negative, asked, cache=None, **options):
    caches = {} if cache is None else {"teacache": cache}
    return Denoiser((Expert(dit, caches),), Geometry()).run(Conditioning(text, negative), asked, **options)


def test_branches_one_after_the_other_give_what_the_batch_gives(dit, texts, monkeypatch):
    cache = TeaCacheModel((0.25,))
    asked = request(cache_threshold=0.6, guidance_end=0.7)
    together, info = denoise(dit, *texts, asked, cache=cache)
    monkeypatch.setattr(loop, "MAX_BATCHED_TOKENS", 0)
    apart, info_apart = denoise(dit, *texts, asked, cache=cache)
    assert relative_error(apart, together) < 1e-4
    assert info.plan == info_apart.plan
    assert info.steps_skipped > 0


def test_branches_are_batched_only_if_small_and_if_the_memory_is_there(dit, monkeypatch):
    assert batch_branches(dit, 80)
    assert not batch_branches(dit, 32760)
    monkeypatch.setattr(loop, "free_bytes", lambda device: 1000)
    assert not batch_branches(dit, 80)


def test_guidance_that_ends_early_saves_a_forward_a_step_and_changes_only_the_rest(dit, texts):
    seen = {}
    for end in (1.0, 0.5):
        steps = []
        _, info = denoise(dit, *texts, request(guidance_end=end), on_step=lambda p, steps=steps: steps.append(p.x0))
        seen[end] = steps, info
    assert (seen[1.0][1].forwards, seen[0.5][1].forwards) == (12, 9)
    assert torch.equal(seen[1.0][0][2], seen[0.5][0][2])
    assert not torch.equal(seen[1.0][0][3], seen[0.5][0][3])


def test_a_cache_skips_only_within_its_range(dit, texts):
    cache = TeaCacheModel((0.25,))
    asked = {"steps": 12, "cache_threshold": 0.6}
    _, everywhere = denoise(dit, *texts, request(**asked), cache)
    _, within = denoise(dit, *texts, request(**asked, cache_start=0.25, cache_end=0.75), cache)
    skipped, fewer = ({i for i, step in enumerate(info.plan) if not step.computed} for info in (everywhere, within))
    assert skipped == {1, 2, 4, 5, 7, 8, 10}
    assert fewer == {i for i in skipped if 3 <= i < 9}


def test_no_guidance_at_all_is_guidance_one(dit, texts):
    never, _ = denoise(dit, *texts, request(guidance_end=0.0))
    one, info = denoise(dit, *texts, request(guidance_scale=1.0))
    assert torch.equal(never, one)
    assert info.forwards == 6


def test_the_same_seed_gives_the_same_bits_whatever_the_options(dit, texts):
    for options in (Options(), Options(attention="int8"), Options(linear="fp8")):
        model = optimized(copy.deepcopy(dit), options)
        runs = [denoise(model, *texts, request(steps=2))[0] for _ in range(2)]
        assert torch.equal(*runs)


def test_folding_the_padding_of_the_text_changes_nothing(dit, texts):
    model = copy.deepcopy(dit)
    folded, _ = denoise(model, *texts, request())
    model.fold_text = False
    whole, _ = denoise(model, *texts, request())
    assert relative_error(whole, folded) < 1e-4


def test_the_info_names_what_was_used_and_skipped(checkpoint):
    pipeline = wan.Pipeline.from_checkpoint(checkpoint)
    pipeline.denoiser.experts[0].caches["teacache"] = TeaCacheModel((0.25,))
    info = pipeline("a cat", seed=1, steps=6, num_frames=5, cache_threshold=0.6, guidance_end=0.5).info
    assert info["engine"]["linear"] == "onednn"
    assert info["skipped"] == [1, 2, 4]
    assert (info["steps_computed"], info["steps_skipped"], info["forwards"]) == (3, 3, 4)
    assert (info["cache"], info["guidance_end"]) == ("teacache", 0.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cache": "easycache"}, "cache is 'easycache'; allowed: teacache, magcache"),
        ({"guidance_end": 1.5}, "guidance_end is 1.5"),
    ],
)
def test_bad_options_are_refused_by_name(given, message):
    with pytest.raises(wan.InvalidRequest, match=message):
        request(**given)


def test_a_cache_that_is_not_calibrated_is_refused_with_the_way_out(dit, texts):
    with pytest.raises(wan.InvalidRequest, match="no magcache calibration; see python -m wan.calibrate"):
        denoise(dit, *texts, request(cache="magcache", cache_threshold=0.1))
