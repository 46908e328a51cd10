from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from contract import Defaults, Geometry, ModelCard
from export.preview_projection import fit_projection
from stages.artifacts import Artifacts
from stages.preview import PreviewProjection
from wan.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def vae(checkpoint):
    return Checkpoint.open(checkpoint).load_vae()


@pytest.fixture(scope="module")
def projection(vae):
    card = ModelCard(geometry=Geometry(temporal_stride=vae.config.temporal_stride), defaults=Defaults(fps=16))
    return PreviewProjection.of(Artifacts({"preview": fit_projection(vae), "card": card.to_dict()}, Path()))


def test_the_preview_of_an_encoded_picture_is_as_bright_as_the_picture(checkpoint, vae, projection):
    if checkpoint.name == "tiny-random":
        pytest.skip("the latents of random weights carry no picture; train the checkpoint with: make tiny")
    means = []
    for level in (-0.94, 0.94):  # the tiny model's black and white background
        latents = vae.encode(torch.full((1, 3, 5, 64, 64), level))[0].numpy()
        means.append(np.mean([np.asarray(image, float).mean() for image in projection.images(latents)]))
    assert means[1] - means[0] > 30


def test_the_file_is_an_animation_with_one_image_for_each_latent_frame(projection, tmp_path):
    projection.write(np.random.default_rng(0).normal(size=(16, 3, 4, 8)).astype(np.float32), tmp_path / "preview.webp")
    with Image.open(tmp_path / "preview.webp") as image:
        assert (image.format, image.n_frames, image.size) == ("WEBP", 3, (128, 64))
        image.load()
        assert image.info["duration"] == 250  # four frames at 16 frames a second
