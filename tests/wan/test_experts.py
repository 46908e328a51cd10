"""Wan 2.2 A14B: two experts, one solver, checked against diffusers' pipeline of two transformers."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file

import wan
from contract import Defaults, Geometry, ModelCard
from tests.wan.reference import relative_error
from wan import calibrate, cost, keys
from wan.checkpoint import Checkpoint
from wan.denoise import GUIDANCE, Conditioning, Denoiser, Expert, Resume
from wan.errors import CheckpointError, InvalidRequest
from wan.samplers import SamplerState
from wan.teacache import TeaCacheModel

PROMPT = "a blue square moves up on a white background"
DEFAULTS = Defaults(width=32, height=32, num_frames=5, steps=8, flow_shift=5.0, guidance_scale=4.0,
                    guidance_scale_2=3.0, negative_prompt="")  # fmt: skip
CARD = ModelCard("t2v-a14b", defaults=DEFAULTS)
CACHE = {"teacache": TeaCacheModel((0.25,))}  # every step adds a quarter, so that 0.6 skips two of three


@pytest.fixture(scope="module")
def pair(checkpoint, tmp_path_factory):
    """The tiny checkpoint as a pair in the Diffusers layout, whose second transformer has other weights."""
    root = tmp_path_factory.mktemp("pair") / "checkpoint"
    theirs = WanPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    second = copy.deepcopy(theirs.transformer)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    theirs.register_modules(transformer_2=second)
    theirs.register_to_config(boundary_ratio=0.875)
    theirs.save_pretrained(root)
    (root / "wan.json").write_text(json.dumps({"defaults": {"width": 64, "height": 64, "num_frames": 17, "steps": 20,
                                                            "flow_shift": 3.0}}))  # fmt: skip
    return root


@pytest.fixture(scope="module")
def official(pair, tmp_path_factory):
    """The same weights in the official layout: the two DiTs alone."""
    root = tmp_path_factory.mktemp("official")
    for theirs, ours in (("transformer", "high_noise_model"), ("transformer_2", "low_noise_model")):
        stored = load_file(pair / theirs / "diffusion_pytorch_model.safetensors")
        (root / ours).mkdir()
        renamed = {keys.dit_from_diffusers(name): tensor for name, tensor in stored.items()}
        save_file(renamed, root / ours / "diffusion_pytorch_model.safetensors")
        (root / ours / "config.json").write_text('{"num_heads": 4}')
    return root


@pytest.fixture(scope="module")
def dits(pair):
    opened = Checkpoint.open(pair)
    return [opened.load_dit(expert=expert) for expert in range(2)]


@pytest.fixture(scope="module")
def text(dits):
    context = torch.randn(2, 512, dits[0].config.text_dim, generator=torch.Generator().manual_seed(0))
    context[:, 9:] = 0
    return Conditioning(*context)


def two(dits, caches=None, boundary=0.875):
    experts = zip(dits, (caches or {},) * 2, (1000 * boundary, 0.0), GUIDANCE, strict=True)
    return Denoiser(tuple(Expert(*each) for each in experts), Geometry())


def request(**given):
    return CARD.request(**{"prompt": "a cat", "seed": 5} | given)


def test_twenty_steps_follow_the_diffusers_pipeline_of_two_transformers(pair):
    theirs = WanPipeline.from_pretrained(pair, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 16, 5, 8, 8, generator=torch.Generator().manual_seed(3))
    expected = theirs(
        PROMPT, negative_prompt="", width=64, height=64, num_frames=17, num_inference_steps=20, guidance_scale=4.0,
        guidance_scale_2=2.0, latents=latents, output_type="latent",
    ).frames[0]  # fmt: skip
    ours = wan.Pipeline.from_checkpoint(pair)(
        PROMPT, negative_prompt="", steps=20, guidance_scale=4.0, guidance_scale_2=2.0, latents=latents[0]
    )
    assert relative_error(ours.latents, expected) < 1e-3
    assert 0 < ours.info["first_expert_steps"] < 20


@pytest.mark.parametrize(
    ("steps", "shift", "boundary", "sampler", "grid", "high"),
    [
        (40, 12.0, 0.875, "unipc", "wan", 26), (40, 5.0, 0.9, "unipc", "wan", 15), (50, 5.0, 0.875, "unipc", "wan", 21),
        (20, 5.0, 0.875, "unipc", "wan", 9), (20, 5.0, 0.9, "unipc", "wan", 8), (8, 5.0, 0.9, "unipc", "wan", 3),
        (4, 5.0, 0.9, "euler", "wan", 2), (4, 5.0, 0.875, "euler", "wan", 2), (40, 3.0, 0.9, "unipc", "wan", 10),
        (40, 3.0, 0.9, "unipc", "diffusers", 11), (40, 3.0, 0.9, "euler", "wan", 11),
        (40, 3.0, 0.875, "unipc", "wan", 12), (40, 3.0, 0.875, "unipc", "diffusers", 13),
        (40, 3.0, 0.875, "euler", "diffusers", 12),
    ],
)  # fmt: skip
def test_the_switch_lies_where_the_references_have_it(dits, steps, shift, boundary, sampler, grid, high):
    """Counts of the official code and of diffusers, taken from running their schedulers."""
    denoiser = Denoiser(two(dits, boundary=boundary).experts, Geometry(), grid)
    plan = denoiser.plan(request(steps=steps, flow_shift=shift, sampler=sampler))
    assert [step.expert for step in plan] == [0] * high + [1] * (steps - high)


def test_each_expert_has_its_own_guidance(dits, text):
    plan = two(dits).plan(request(guidance_scale=1.0))
    assert {step.expert: step.branches for step in plan} == {0: 1, 1: 2}
    assert request(guidance_scale=1.0).guided
    assert not request(guidance_scale=1.0, guidance_scale_2=1.0).guided
    ours, info = two(dits).run(text, request(guidance_scale_2=1.0))
    other, _ = two(dits).run(text, request(guidance_scale_2=2.0))
    assert info.forwards == sum(step.branches for step in info.plan) < 16
    assert not torch.allclose(ours, other, atol=1e-3)


def test_one_expert_in_both_places_is_a_model_of_one(dits, text):
    asked = request(guidance_scale_2=4.0)
    whole, _ = Denoiser((Expert(dits[0]),), Geometry()).run(text, asked)
    pair, _ = two([dits[0], dits[0]]).run(text, asked)
    assert torch.equal(pair, whole)  # one solver runs through both


@pytest.mark.parametrize("threshold", [0.0, 0.6])
def test_a_run_resumes_bit_identically_in_either_expert_and_across_the_switch(dits, text, threshold):
    points, asked = [], request(steps=12, cache_threshold=threshold)

    def collect(progress):
        if progress.resumable:
            tensors = {name: t.clone() for name, t in progress.state.tensors().items()}
            points.append(Resume(progress.step, SamplerState.from_tensors(tensors)))

    denoiser = two(dits, CACHE)
    whole, info = denoiser.run(text, asked, on_step=collect)
    switch = [step.expert for step in info.plan].index(1)
    assert switch in [point.step for point in points]  # no residual survives it, so one can always resume there
    assert min(point.step for point in points) < switch < max(point.step for point in points)
    assert (info.steps_skipped > 0) == (threshold > 0)
    for point in points:
        continued, _ = denoiser.run(text, asked, resume=point)
        assert torch.equal(continued, whole)


def test_both_layouts_are_read_and_hold_the_same(pair, official):
    ours, theirs = (Checkpoint.open(root) for root in (official, pair))
    assert ours.variant.name == theirs.variant.name == "t2v-a14b"
    assert ours.boundary == theirs.boundary == 0.875
    for expert in range(2):
        a, b = (opened.load_dit(expert=expert).state_dict() for opened in (ours, theirs))
        assert all(torch.equal(a[name], b[name]) for name in {*a, *b})
    assert not torch.equal(a["head.head.weight"], theirs.load_dit().state_dict()["head.head.weight"])
    assert [sorted(caches) for caches in ours.caches] == [["magcache"], ["magcache"]]
    assert [len(caches["magcache"].ratios) for caches in ours.caches] == [26, 14]


def test_experts_of_other_shapes_are_refused_at_load(pair, official, tmp_path):
    shutil.copytree(official, tmp_path / "copy")
    file = tmp_path / "copy" / "low_noise_model" / "diffusion_pytorch_model.safetensors"
    stored = load_file(file)
    stored["blocks.0.ffn.0.bias"] = stored["blocks.0.ffn.0.bias"][:-1].clone()
    save_file(stored, file)
    with pytest.raises(CheckpointError, match=r"not experts of one model: tensor blocks.0.ffn.0.bias is \[512\] in"):
        Checkpoint.open(tmp_path / "copy").load_dit()
    shutil.rmtree(file.parent)
    with pytest.raises(CheckpointError, match="low_noise_model"):
        Checkpoint.open(tmp_path / "copy").load_dit()


def test_a_pair_without_a_boundary_is_refused(pair, tmp_path):
    for part in ("transformer", "transformer_2"):
        (tmp_path / part).symlink_to(pair / part)
    with pytest.raises(CheckpointError, match="model_index.json: boundary_ratio is missing"):
        _ = Checkpoint.open(tmp_path).boundary
    (tmp_path / "wan.json").write_text('{"boundary": 0.9}')
    assert Checkpoint.open(tmp_path).boundary == 0.9


def test_a_second_guidance_scale_is_refused_where_there_is_one_expert():
    assert request().guidance_scale_2 == 3.0
    with pytest.raises(InvalidRequest, match="guidance_scale_2 is 3.0; allowed: nothing, as the served model does not"):
        ModelCard().request(prompt="x", guidance_scale_2=3.0)
    assert ModelCard().request(prompt="x", guidance_scale_2=None).guidance_scale_2 is None
    with pytest.raises(wan.WanError, match="guidance_scale_2 means nothing to the variant t2v"):
        ModelCard.from_dict({"defaults": {"guidance_scale_2": 3.0}}, "here")


def test_caches_are_calibrated_for_each_expert(pair, tmp_path):
    shutil.copytree(pair, tmp_path / "copy")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROMPT)
    calibrate.main([str(tmp_path / "copy"), "--prompts", str(prompts), "--degree", "2", "--speed-up", "1.3"])
    opened = Checkpoint.open(tmp_path / "copy")
    pipeline = wan.Pipeline.from_checkpoint(tmp_path / "copy")
    asked = pipeline.card.request(prompt=PROMPT, seed=0)
    plan = pipeline.denoiser.plan(asked)
    first = sum(step.expert == 0 for step in plan)
    assert [len(caches["magcache"].ratios) for caches in opened.caches] == [first, 20 - first]
    assert opened.caches[0]["teacache"] != opened.caches[1]["teacache"]
    assert sum(step.computed for step in plan) <= 20 / 1.3
    assert plan[first].computed
    assert cost.switch_table(pipeline, (10, 20))[20] == first
    threshold = asked.cache_threshold
    table = cost.plan_table(pipeline, (20,), (threshold,))
    assert table["teacache"][20] == {threshold: "".join("01"[step.computed] for step in plan)}


@pytest.mark.parametrize("sampler", ["unipc", "euler"])
def test_a_clip_that_is_little_changed_is_the_second_experts_alone(pair, sampler):
    pipeline = wan.Pipeline.from_checkpoint(pair)
    clip = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    given = {"num_frames": 9, "steps": 10, "sampler": sampler, "seed": 1}
    whole, part = (pipeline(PROMPT, video=clip, strength=s, **given).info["first_expert_steps"] for s in (1.0, 0.2))
    assert (whole > 0, part) == (True, 0)
