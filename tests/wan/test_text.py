import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from transformers import AutoTokenizer, UMT5EncoderModel

import wan
from tests.wan.reference import relative_error
from wan.errors import InvalidRequest
from wan.text import clean_prompt

PROMPTS = ["a red circle moves left on a black background", "一个蓝色的方块在灰色背景上向上移动", ""]


@pytest.mark.parametrize(
    "text",
    ["  a\tcat \n sat ", "&amp;lt;b&amp;gt; caf\u00c3\u00a9", "，全角！ｆｕｌｌ", "a\u00a0b\u3000c", "“quoted”", ""],
)
def test_cleaning_equals_diffusers(text):
    assert clean_prompt(text) == prompt_clean(text)


@torch.no_grad()
def test_embeddings_equal_transformers_and_are_zero_after_the_text(checkpoint):
    tokenizer, encoder = wan.load_tokenizer(checkpoint), wan.load_text_encoder(checkpoint)
    ids, mask = tokenizer(PROMPTS)
    reference = UMT5EncoderModel.from_pretrained(checkpoint / "text_encoder", dtype=torch.float32).eval()
    expected = reference(input_ids=ids, attention_mask=mask).last_hidden_state
    ours = encoder.encode(ids, mask)
    assert ours.shape == expected.shape
    for row, wanted, length in zip(ours, expected, mask.sum(1).tolist(), strict=True):
        assert relative_error(row[:length], wanted[:length]) < 1e-4
        assert not row[length:].any()


def test_token_ids_equal_those_of_the_checkpoints_own_tokenizer(checkpoint):
    theirs = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
    ids, mask = wan.load_tokenizer(checkpoint)(PROMPTS)
    expected = theirs(PROMPTS, padding="max_length", max_length=512, return_tensors="pt")
    assert ids.dtype == mask.dtype == torch.int32
    assert torch.equal(ids.long(), expected["input_ids"])
    assert torch.equal(mask.long(), expected["attention_mask"])


def test_a_prompt_of_too_many_tokens_is_refused_not_cut(checkpoint):
    with pytest.raises(InvalidRequest, match=r"negative prompt is '\d+ tokens'; allowed: at most 512 tokens"):
        wan.load_tokenizer(checkpoint)(["red " * 600], field="negative prompt")
