"""Other words than those of the templates, in any letter case: how they are cut, learned and obeyed."""

import random

import pytest
import sentencepiece
import torch

from tests.conftest import TINY
from tiny import wordings
from tiny.obedience import check, evaluate, reworded_prompts
from tiny.scenes import SCENES, Scene
from tiny.train_dit import Embedder
from tiny.train_wordings import TEMPLATES, extended, with_pieces
from wan import Pipeline
from wan.checkpoint import Checkpoint
from wan.text import Tokenizer

TYPED = (
    ("A YELLOW TRIANGLE MOVES LEFT ON A BLACK BACKGROUND", Scene("triangle", "yellow", "left", "black")),
    ("Blue ball drifts towards the top, white background", Scene("circle", "blue", "up", "white")),
    ("a green plus sign slides rightwards on a gray background", Scene("cross", "green", "right", "gray")),
    ("黑色背景上，一个红球往下滑动", Scene("circle", "red", "down", "black")),
)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(TINY / "tokenizer")


def test_every_wording_has_its_pieces_and_capitals_mean_what_small_letters_mean(tokenizer):
    rng = random.Random(0)
    texts = [wording(scene, rng) for scene in SCENES[::7] for wording in (wordings.english, wordings.chinese)]
    ids, _ = tokenizer(texts)
    assert not (ids == 2).any()
    assert torch.equal(tokenizer([text.upper() for text in texts])[0], ids)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(TINY / "tokenizer/spiece.model"))
    for text in ("A Blue BOX goes UPWARDS", TYPED[2][0]):
        assert [*pieces.encode(text), 1] == [i for i in tokenizer([text])[0][0].tolist() if i]


def test_new_pieces_and_what_is_learned_for_them_leave_the_templates_alone(tmp_path):
    base = Checkpoint.open(TINY)
    spiece = base.tokenizer_directory / "spiece.model"
    before = sentencepiece.SentencePieceProcessor(model_file=str(spiece))
    after = with_pieces(spiece, tmp_path / "more.model")
    assert before.encode(TEMPLATES) == after.encode(TEMPLATES)
    told, encoder = Embedder.of(base), base.load_text_encoder().encoder
    texts = TEMPLATES[:: len(TEMPLATES) // 30]
    expected = told(texts)
    rows = extended(encoder, after)
    learned = rows.weight.detach().clone()
    Embedder(after, encoder).embed([*texts, "A ball drifts upwards"]).square().mean().backward()
    torch.optim.Adam(rows.parameters(), lr=0.1).step()
    assert not torch.equal(rows.weight, learned)
    assert torch.equal(Embedder(after, encoder)(texts), expected)


def test_the_shipped_model_obeys_other_words_and_capitals():
    pipeline = Pipeline.from_checkpoint(TINY)
    verdicts = evaluate(lambda prompt, seed: pipeline(prompt, seed=seed).frames, 8, prompts=reworded_prompts)
    verdicts += [check(pipeline(text, seed=0).frames, scene) for text, scene in TYPED]
    assert sum(v.obeys for v in verdicts) >= len(verdicts) - 2, [str(v) for v in verdicts]
