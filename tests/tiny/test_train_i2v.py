"""The training of models/tiny-i2v, for a step: what is encoded fits the model, in the order of the scenes."""

from pathlib import Path

import sentencepiece
import torch

from tests.conftest import TINY
from tiny.train_dit import Embedder, train
from tiny.train_i2v import drawn, encode_clips, from_base, joined
from wan.checkpoint import Checkpoint


def test_freshly_encoded_clips_train_a_model_that_begins_as_its_base(tmp_path):
    base = Checkpoint.open(TINY)
    clips = joined([encode_clips(TINY, 2, seed) for seed in (0, 1)], 2)
    assert clips.scenes == drawn(2, 0) + drawn(2, 1)
    assert clips.latents.shape == (4, 16, 5, 8, 8)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(Path(base.tokenizer_directory) / "spiece.model"))
    embed = Embedder(processor, base.load_text_encoder().encoder)
    model, times, text = from_base(base.load_dit()), torch.full((4,), 500.0), embed(["a red circle"] * 4)
    with torch.no_grad():
        shown = model(clips.latents, times, text, *clips.given)
        torch.testing.assert_close(shown, base.load_dit()(clips.latents, times, text), atol=1e-5, rtol=0)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3)]
    train(model, embed, clips, tmp_path / "i2v.safetensors", optimizers, steps=2, batch_size=2, seed=0)
    with torch.no_grad():
        assert not torch.equal(model(clips.latents, times, text, *clips.given), shown)
