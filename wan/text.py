"""Prompt cleaning, tokenisation and the umT5 encoder (module from transformers)."""

import html
import re
from pathlib import Path

import ftfy
import torch
from torch import Tensor, nn

from wan.errors import CheckpointError, InvalidRequest

TEXT_LENGTH = 512


def clean_prompt(text: str) -> str:
    """Repair encoding damage, unescape HTML twice and collapse white space, as the reference does before tokenising."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


class Tokenizer:
    """SentencePiece tokens of a prompt, ended by </s> and padded to 512."""

    def __init__(self, directory: Path):
        from transformers import AutoTokenizer

        if not directory.is_dir():
            raise CheckpointError(f"no tokenizer at {directory}")
        self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)

    def __call__(self, texts: list[str], field: str = "prompt") -> tuple[Tensor, Tensor]:
        """Token ids and mask of cleaned texts, int32 [B, 512] each.

        Raises InvalidRequest naming `field` for a text of more than 512 tokens: the reference would cut it silently.
        """
        rows = self._tokenizer([clean_prompt(t) for t in texts], add_special_tokens=True)["input_ids"]
        ids = torch.full((len(texts), TEXT_LENGTH), self._tokenizer.pad_token_id, dtype=torch.int32)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            if len(row) > TEXT_LENGTH:
                raise InvalidRequest(field, f"{len(row)} tokens", f"at most {TEXT_LENGTH} tokens")
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.int32)
            mask[i, : len(row)] = 1
        return ids, mask


class TextEncoder(nn.Module):
    """umT5 encoder whose output is zero after the end of the text, which is what the DiT was trained on."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embeddings [B, L, d_model] of token ids and mask [B, L]."""
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden * mask.unsqueeze(-1).to(hidden.dtype)

    @torch.inference_mode()
    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """As `forward`, but computes only as many columns as the longest text has; padding never changes the rest."""
        used = int(mask.sum(dim=1).max())
        device = next(self.parameters()).device
        hidden = self(ids[:, :used].to(device), mask[:, :used].to(device))
        return nn.functional.pad(hidden, (0, 0, 0, ids.shape[1] - used))
