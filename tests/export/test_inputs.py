"""Which media a repository takes: the inputs and encoders of its checkpoint."""

import shutil

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from export.build import Build
from export.options import Options
from export.repository import render
from tests.wan.picture_checkpoints import CLIP_DIM, write_diffusers
from wan.errors import CheckpointError

NUMBERS = {"text_len": 512, "text_dim": 64, "z_dim": 16, "denoise_instances": 1}


def configs(folder, takes, image_dim) -> dict[str, ModelConfig]:
    render(folder, NUMBERS | {"takes": takes, "image_dim": image_dim})
    files = folder.glob("*/config.pbtxt")
    return {file.parent.name: text_format.Parse(file.read_text(), ModelConfig()) for file in files}


@pytest.mark.parametrize(
    ("takes", "image_dim", "encoders"),
    [((), 0, set()), (("video",), 0, {"vae_encoder"}), (("image",), 160, {"vae_encoder", "image_encoder"})],
)
def test_a_repository_has_the_inputs_and_encoders_of_its_checkpoint(tmp_path, takes, image_dim, encoders):
    found = configs(tmp_path, takes, image_dim)
    assert found.keys() - {"wan", "tokenizer", "text_encoder", "denoise", "vae_decoder"} == encoders
    media = {t.name for t in found["wan"].input} & {"IMAGE", "LAST_IMAGE", "VIDEO", "VIDEO_FRAMES"}
    assert media == {"IMAGE"} & {n.upper() for n in takes} | ({"VIDEO", "VIDEO_FRAMES"} if "video" in takes else set())
    for step in found["wan"].ensemble_scheduling.step:
        model = found[step.model_name]
        assert set(step.input_map) <= {tensor.name for tensor in model.input}
        assert set(step.output_map) <= {tensor.name for tensor in model.output}


def test_a_model_that_needs_pictures_is_exported_with_its_clip_alone(checkpoint, tmp_path):
    root = write_diffusers(tmp_path / "i2v", checkpoint, 1)
    build = Build(root, tmp_path / "out", Options())
    build.check()
    assert build.template_values()["image_dim"] == CLIP_DIM
    shutil.rmtree(root / "image_encoder")
    with pytest.raises(CheckpointError, match="image_encoder"):
        Build(root, tmp_path / "out", Options()).check()
