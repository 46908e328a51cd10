import numpy as np
import pytest
import torch
from PIL import Image

from export.preview_projection import fit_projection
from stages.preview import PreviewProjection
from wan.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def vae(checkpoint):
    return Checkpoint.open(checkpoint).load_vae()


@pytest.fixture(scope="module")
def projection(vae):
    strides = {"temporal_stride": vae.config.temporal_stride}
    return PreviewProjection.from_manifest({"preview": fit_projection(vae), "vae": strides, "defaults": {"fps": 16}})


def test_the_preview_of_encoded_colours_shows_these_colours(checkpoint, vae, projection):
    if checkpoint.name == "tiny-random":
        pytest.skip("the latents of random weights carry no colours; train the checkpoint with: make tiny")
    colours = {"red": (0.9, -0.9, -0.9), "green": (-0.9, 0.9, -0.9), "blue": (-0.9, -0.9, 0.9)}
    for channel, colour in enumerate(colours.values()):
        video = torch.tensor(colour).view(1, 3, 1, 1, 1).expand(1, 3, 5, 64, 64)
        images = projection.images(vae.encode(video)[0].numpy())
        mean = np.mean([np.asarray(image, float).mean((0, 1)) for image in images], axis=0)
        assert mean.argmax() == channel
        # A linear guess at a network, and a picture of one colour is not what the tiny VAE was trained on.
        assert mean[channel] - np.delete(mean, channel).max() > 20


def test_the_file_is_an_animation_with_one_image_for_each_latent_frame(projection, tmp_path):
    projection.write(np.random.default_rng(0).normal(size=(16, 3, 4, 8)).astype(np.float32), tmp_path / "preview.webp")
    with Image.open(tmp_path / "preview.webp") as image:
        assert (image.format, image.n_frames, image.size) == ("WEBP", 3, (128, 64))
        image.load()
        assert image.info["duration"] == 250  # four frames at 16 frames a second
