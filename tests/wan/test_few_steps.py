"""Models distilled to a few steps: their noise levels, the sampler that noises again, and what is refused or warned of."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import wan
from contract import Defaults, Geometry, ModelCard
from contract.errors import InvalidCard
from tests.wan.reference import relative_error
from wan.checkpoint import Checkpoint
from wan.denoise import Conditioning, Denoiser, Expert, Resume, initial_latents
from wan.errors import UnsupportedCheckpoint
from wan.samplers import SamplerState, noise, renoise, schedule

SMALL = {"width": 32, "height": 32, "num_frames": 5}


def card(variant: str) -> ModelCard:
    return ModelCard.from_dict({"variant": variant, "defaults": SMALL}, "here")


def test_the_list_of_lightx2v_and_lightning_is_euler_with_shift_five():
    """LightX2V: indices 1000, 750, 500, 250 of a grid with shift 5; Lightning: linspace(1000, 0, 5), then the shift."""
    defaults = card("t2v-4step").defaults
    assert (defaults.steps, defaults.flow_shift, defaults.guidance_scale, defaults.sampler) == (4, 5.0, 1.0, "euler")
    plan = schedule(defaults.sampler, defaults.steps, defaults.flow_shift)
    assert plan.timesteps == pytest.approx((1000, 937.5, 833.3333, 625))
    assert plan.sigmas == pytest.approx((1, 0.9375, 0.833333, 0.625, 0))


@pytest.mark.parametrize(
    ("variant", "timesteps"),
    [("t2v-rcm", (987.654, 933.781, 852.895, 608.979)), ("ti2v-5b-dmd", (1000, 757, 522))],
)
def test_levels_that_no_shift_gives_are_those_of_the_row(variant, timesteps):
    row, defaults = card(variant).row, card(variant).defaults
    assert defaults.sampler == "renoise"
    plan = schedule("renoise", defaults.steps, defaults.flow_shift, levels=row.levels)
    assert plan.timesteps == pytest.approx(timesteps)
    assert plan.sigmas[-1] == 0
    assert schedule("renoise", 2, 5.0, levels=row.levels).timesteps == plan.timesteps[:2]
    assert schedule("renoise", 8, 5.0, levels=row.levels).steps == 8


def test_noising_again_gives_the_answer_at_the_next_level_and_ends_with_it():
    x, velocity = torch.randn(2, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    x0 = x - 0.9 * velocity
    state = renoise(SamplerState(x), velocity, (0.9, 0.5, 0.0), 0, seed=7)
    torch.testing.assert_close(state.latents, 0.5 * x0 + 0.5 * noise(7, 0, (4, 1, 2, 2)))
    assert torch.equal(renoise(SamplerState(x), velocity, (1.0, 0.9, 0.0), 1, seed=7).latents, x0)


def test_the_noise_is_that_of_seed_and_step_alone():
    drawn = [noise(seed, step, (64,)) for seed, step in ((0, 0), (0, 1), (1, 0), (10, 1), (1, 1))]
    assert torch.equal(noise(0, 1, (64,)), drawn[1])
    drawn += [initial_latents(seed, (64,)) for seed in (0, 1)]
    assert all(abs(torch.dot(a, b) / 64) < 0.5 for i, a in enumerate(drawn) for b in drawn[:i])


@pytest.fixture(scope="module")
def dit(checkpoint):
    return wan.load_dit(checkpoint)


@pytest.fixture(scope="module")
def text(dit):
    context = torch.zeros(512, dit.config.text_dim)
    context[:7] = torch.randn(7, dit.config.text_dim, generator=torch.Generator().manual_seed(0))
    return Conditioning(context)


def test_a_run_that_draws_noise_resumes_bit_identically(dit, text):
    row, points = card("t2v-rcm"), []
    denoiser = Denoiser((Expert(dit),), Geometry(), levels=row.row.levels)
    asked = row.request(prompt="x", seed=11)
    whole, info = denoiser.run(text, asked, on_step=lambda p: points.append(Resume(p.step, p.state)))
    assert info.forwards == 4
    for point in points[:-1]:
        continued, _ = denoiser.run(text, asked, resume=point)
        assert torch.equal(continued, whole)
    other, _ = denoiser.run(text, row.request(prompt="x", seed=12))
    assert relative_error(other, whole) > 0.1


def test_a_student_starts_with_the_noise_of_its_first_level(dit, text):
    asked = card("t2v-rcm").request(prompt="x", seed=11, steps=1)
    levels, seen = (0.5,), []
    Denoiser((Expert(dit),), Geometry(), levels=levels).run(text, asked, on_step=seen.append)
    scaled = 0.5 * initial_latents(11, (16, 2, 4, 4))
    plain, _ = Denoiser((Expert(dit),), Geometry(), levels=levels).run(text, asked, latents=scaled)
    assert torch.equal(seen[-1].state.latents, plain)


def test_a_distilled_model_warns_of_guidance_and_of_other_steps(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "copy")
    (tmp_path / "copy" / "wan.json").write_text(json.dumps({"variant": "t2v-4step", "defaults": SMALL}))
    pipeline = wan.Pipeline.from_checkpoint(tmp_path / "copy")
    info = pipeline("a red circle", seed=1).info
    assert (info["forwards"], info["sampler"]) == (4, "euler")
    assert "warnings" not in info
    info = pipeline("a red circle", seed=1, steps=5, guidance_scale=3.0).info
    assert [warning.split(":")[0] for warning in info["warnings"]] == ["guidance", "steps is 5"]
    assert not ModelCard(defaults=Defaults()).warnings(ModelCard().request(prompt="x"))


def test_a_row_that_the_weights_do_not_fit_is_refused(checkpoint, tmp_path):
    shutil.copytree(checkpoint / "transformer", tmp_path / "transformer")
    (tmp_path / "wan.json").write_text('{"variant": "t2v-a14b-4step"}')
    with pytest.raises(
        wan.CheckpointError, match="variant is 't2v-a14b-4step'; allowed for these tensors: t2v, t2v-4st"
    ):
        Checkpoint.open(tmp_path).load_dit()
    with pytest.raises(InvalidCard, match="variant is 't2v-5step'"):
        ModelCard.from_dict({"variant": "t2v-5step"}, "here")


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        ("blocks.0.to_gate_compress.weight", "video sparse attention"),
        ("blocks.0.self_attn.attn_op.local_attn.proj_l.weight", "sparse-linear attention"),
        ("blocks.1.attn1.attn_impl.proj_l.bias", "sparse-linear attention"),
    ],
)
def test_weights_of_sparse_attention_are_refused_by_name(checkpoint, tmp_path, tensor, what):
    shutil.copytree(checkpoint / "transformer", tmp_path / "transformer")
    file = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {tensor: torch.zeros(2, 2)}, file)
    with pytest.raises(UnsupportedCheckpoint, match=f"belongs to {what}"):
        Checkpoint.open(tmp_path).load_dit()
