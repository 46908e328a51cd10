"""`python -m stages.cost REPOSITORY --out FILE`: what requests cost, measured with the very parts that serve them.

Like `python -m wan.cost`, which measures a checkpoint, but over an exported repository: its FP8 weights, LoRAs and plans,
under the WAN_ settings of the stages.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contract.card import ModelCard
from contract.parameters import GenerationRequest
from stages.artifacts import Artifacts
from stages.crew import Crew, open_on_ranks
from stages.device import on_device
from stages.runtimes import device_of, open_text_encoder, open_vae
from stages.settings import StageSettings, load_settings
from stages.text_runtime import TextRuntime
from stages.vae_runtime import VaeRuntime, decode
from wan import cost
from wan.denoise import Conditioning, Denoiser
from wan.pipeline import Media
from wan.text import Tokenizer


@dataclass
class ServedPipeline:
    """The stages of a repository without Triton between them; what `wan.cost` needs of a `wan.pipeline.Pipeline`."""

    tokenizer: Tokenizer
    text_encoder: TextRuntime
    denoiser: Denoiser
    vae: VaeRuntime
    card: ModelCard
    crew: Crew | None = None  # of a video on several ranks

    @classmethod
    def open(cls, repository: Path, settings: StageSettings) -> "ServedPipeline":
        """The first instance of each stage; raises ArtifactError."""
        tokenizer, text, denoise, vae = (
            Artifacts.of(repository, name) for name in ("tokenizer", "text_encoder", "denoise", "vae_decoder")
        )
        text_encoder, decoder = open_text_encoder(text, settings), open_vae(vae, settings)
        denoiser, crew = open_on_ranks(denoise, settings)
        return cls(Tokenizer(tokenizer["tokenizer"]), text_encoder, denoiser, decoder, denoise.card, crew)

    def condition(self, request: GenerationRequest, media: Media | None = None) -> Conditioning:
        """With empty pictures, whatever `media` holds: what they show costs nothing."""
        embedded = []
        for text in (request.prompt, request.negative_prompt):
            ids, mask = (tokens.numpy() for tokens in self.tokenizer([text]))
            embedded.append(torch.from_numpy(self.text_encoder.encode(ids, mask))[0])
        return replace(self.denoiser.blank(embedded[0], request), negative_text=embedded[1])

    def decode(self, latents: Tensor) -> np.ndarray:
        return np.concatenate(list(decode(self.vae, latents.cpu())))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m stages.cost", description=__doc__.splitlines()[0])
    parser.add_argument("repository", type=Path)
    cost.add_options(parser)
    given, settings = parser.parse_args(arguments), load_settings()
    with on_device(device_of(Artifacts.of(given.repository, "denoise"), settings)):
        pipeline: Any = ServedPipeline.open(given.repository, settings)
        try:
            return cost.write(pipeline, given, f"python -m stages.cost {given.repository}")
        finally:
            if pipeline.crew:
                pipeline.crew.close()


if __name__ == "__main__":
    raise SystemExit(main())
