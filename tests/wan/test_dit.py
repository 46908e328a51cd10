import pytest
import torch

from tests.wan.reference import dit_pair, relative_error
from wan.config import DiTConfig
from wan.dit import WanDiT, rotary_tables, rotate
from wan.errors import CheckpointError, InvalidRequest


@pytest.mark.parametrize(
    ("heads", "head_dim", "layers", "ffn_dim", "text_dim", "shape", "text_lengths"),
    [
        (2, 128, 2, 320, 96, (1, 16, 1, 6, 4), [5]),
        (3, 48, 3, 256, 64, (2, 16, 5, 8, 6), [7, 31]),
        (4, 32, 1, 128, 32, (2, 16, 2, 4, 10), [512, 511]),
    ],
)
@torch.no_grad()
def test_forward_equals_diffusers(heads, head_dim, layers, ffn_dim, text_dim, shape, text_lengths):
    reference, ours = dit_pair(heads, head_dim, layers, ffn_dim, text_dim, seed=heads)
    latents = torch.randn(shape)
    timestep = torch.tensor([937.0, 41.0])[: shape[0]]
    context = torch.randn(shape[0], 512, text_dim)
    for row, length in zip(context, text_lengths, strict=True):
        row[length:] = 0
    expected = reference(latents, timestep, context, return_dict=False)[0]
    assert relative_error(ours(latents, timestep, context), expected) < 1e-4


@torch.no_grad()
def test_a_model_takes_more_channels_than_it_predicts():
    reference, ours = dit_pair(2, 48, 1, 128, 32, seed=0, in_channels=36)
    inputs = torch.randn(1, 36, 2, 4, 6), torch.tensor([500.0]), torch.randn(1, 512, 32)
    velocity = ours(*inputs)
    assert velocity.shape == (1, 16, 2, 4, 6)
    assert relative_error(velocity, reference(*inputs, return_dict=False)[0]) < 1e-4
    with pytest.raises(InvalidRequest, match=r"latents shape is \(1, 16, 2, 4, 6\); allowed: \[B, 36, T, h, w\]"):
        ours(torch.zeros(1, 16, 2, 4, 6), *inputs[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_folded_padding_weighs_as_much_as_all_of_its_rows(dtype):
    dit = WanDiT(DiTConfig(dim=96, num_layers=1, num_heads=2, ffn_dim=64, text_dim=32)).to(dtype)
    context = torch.ones(501, 512, 32)
    for length, row in enumerate(context):
        row[length:] = 0
    bias = dit.conditioning(context[:501:20]).sources[0][0].bias
    weights = bias.double().exp().sum(dim=-1)
    assert bias.shape[-1] < 512
    assert (weights / 512 - 1).abs().max() < (1e-6 if dtype == torch.float32 else 3e-4)


@torch.no_grad()
def test_each_source_of_cross_attention_has_a_softmax_of_its_own():
    _, dit = dit_pair(2, 48, 1, 128, 32, seed=0)
    attention, x = dit.blocks[0].cross_attn, torch.randn(1, 6, 96)
    one, other = (attention.text(torch.randn(1, length, 96), None) for length in (9, 4))
    together = attention(x, (one, other)) + attention.o.bias
    torch.testing.assert_close(together, attention(x, (one,)) + attention(x, (other,)), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_each_sample_of_a_batch_is_independent_of_the_others():
    _, dit = dit_pair(2, 48, 2, 128, 32, seed=0)
    latents, timestep, context = torch.randn(2, 16, 2, 4, 4), torch.tensor([500.0, 20.0]), torch.randn(2, 512, 32)
    context[0, 3:] = 0
    context[1, 90:] = 0
    both = dit(latents, timestep, context)
    alone = dit(latents[1:], timestep[1:], context[1:])
    assert relative_error(both[1:], alone) < 1e-5


@torch.no_grad()
def test_padding_changes_the_result_so_that_it_must_be_attended_to():
    _, dit = dit_pair(2, 48, 1, 128, 32, seed=0)
    context = torch.randn(1, 512, 32)
    context[:, 9:] = 0
    latents, timestep = torch.randn(1, 16, 1, 4, 4), torch.tensor([500.0])
    assert relative_error(dit(latents, timestep, context[:, :10]), dit(latents, timestep, context)) > 1e-3


def test_rotation_keeps_lengths_and_depends_on_distance_only():
    tables = rotary_tables((16, 16, 16), (7, 1, 1), torch.device("cpu"))
    q, k = torch.randn(48), torch.randn(48)
    rotated_q = rotate(q.expand(1, 7, 1, 48), tables)[0, :, 0]
    rotated_k = rotate(k.expand(1, 7, 1, 48), tables)[0, :, 0]
    torch.testing.assert_close(rotated_q.norm(dim=-1), q.norm().expand(7))
    scores = rotated_q @ rotated_k.T
    torch.testing.assert_close(scores.diagonal(2), scores[0, 2].expand(5))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 8, 1, 4, 4), r"latents shape is \(1, 8, 1, 4, 4\)"), ((1, 16, 1, 5, 4), r"latents size is \(5, 4\)")],
)
def test_latents_that_do_not_fit_are_refused_by_name(shape, message):
    dit = WanDiT(DiTConfig(dim=96, num_layers=1, num_heads=2, ffn_dim=64, text_dim=32))
    with pytest.raises(InvalidRequest, match=message):
        dit(torch.zeros(shape), torch.zeros(1), torch.zeros(1, 512, 32))


def test_impossible_sizes_are_refused_with_the_numbers():
    with pytest.raises(CheckpointError, match="100 is not a multiple of num_heads 3"):
        DiTConfig(dim=100, num_layers=1, num_heads=3, ffn_dim=64)
