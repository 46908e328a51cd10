"""The exported text encoder under ONNX Runtime against the PyTorch encoder."""

import pytest
import torch

from stages.text_runtime import OnnxTextEncoder
from wan import load_tokenizer
from wan.checkpoint import Checkpoint


@pytest.mark.parametrize("prompt", ["a red circle", "", "一个蓝色的方块在灰色背景上向上移动", "word " * 100])
def test_a_context_is_that_of_the_pytorch_encoder_and_zero_after_the_text(repository, checkpoint, prompt):
    ids, mask = load_tokenizer(checkpoint)([prompt])
    expected = Checkpoint.open(checkpoint).load_text_encoder().encode(ids, mask)
    context = torch.from_numpy(OnnxTextEncoder(repository / "text_encoder" / "1", 1).encode(ids.numpy(), mask.numpy()))
    assert context.shape == expected.shape
    assert (context - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert context[0, int(mask.sum()) :].abs().max() == 0
