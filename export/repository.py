"""Renders the model repository: configurations with their numbers filled in, beside the models' code.

For GPUs the same configurations are changed where a GPU differs: the text encoder is a TensorRT plan under Triton's own
backend and instances sit on GPUs. One source for both targets keeps their inputs and outputs the same. Tensors cross
between stages through the host, as Triton's Python backend does by default: they are some 25 MB a request, and a process
that takes one where it lies opens a context of 0.6 GB on that GPU too.
"""

import shutil
from pathlib import Path
from string import Template
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from contract.tensors import ENSEMBLE
from export import inputs, paths
from export.atomic import replacing
from export.placement import Placement

HEADER = "# Rendered by python -m export --target gpu; to change the placement, export again.\n"
# Names and messages from TensorRT's plan have no clock: timings of the encoder exist on a CPU only.
TIMINGS = ("TIMING", "NEGATIVE_TIMING")


def exchange(building: Path, out: Path) -> None:
    """Put the new repository in the place of the old one; a server that runs keeps the files it has open."""
    replaced = paths.replaced(out)
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        out.rename(replaced)
    building.rename(out)
    shutil.rmtree(replaced, ignore_errors=True)


def _substituted(model: str, values: dict[str, Any]) -> str:
    template = Template((paths.TEMPLATES / model / "config.pbtxt").read_text())
    return template.substitute(
        inputs.request_values(tuple(values.get("takes", ())), values.get("image_dim", 0)) | values
    )


def read_config(model: str, values: dict) -> ModelConfig:
    """The template of a model with its placeholders filled in; raises KeyError for one without a value."""
    return text_format.Parse(_substituted(model, values), ModelConfig())


def _on_gpus(config: ModelConfig, gpus: tuple[int, ...], count: int) -> None:
    del config.instance_group[:]
    config.instance_group.add(kind=ModelInstanceGroup.KIND_GPU, count=count, gpus=gpus)


def _text_encoder(config: ModelConfig, placement: Placement) -> None:
    config.backend, config.default_model_filename = "tensorrt", "model.plan"
    # The cache only takes responses in CPU memory, and TensorRT's lie on the GPU. Encoding a prompt takes milliseconds here.
    config.ClearField("response_cache")
    for tensor in (*config.input, *config.output):
        tensor.dims[0] = -1  # as in the plan: batches of one or two prompts
    timing = [tensor for tensor in config.output if tensor.name in TIMINGS]
    for tensor in timing:
        config.output.remove(tensor)
    _on_gpus(config, placement.gpus["text_encoder"], 1)


def _denoise(config: ModelConfig, placement: Placement) -> None:
    _on_gpus(config, placement.leading("denoise"), placement.denoise_instances)


def _once(config: ModelConfig, placement: Placement) -> None:
    _on_gpus(config, placement.gpus[config.name], 1)


def _ensemble(config: ModelConfig, placement: Placement) -> None:
    for step in config.ensemble_scheduling.step:
        for name in TIMINGS:
            step.input_map.pop(name, None)
            step.output_map.pop(name, None)


CHANGES = {"text_encoder": _text_encoder, "denoise": _denoise, ENSEMBLE: _ensemble}
CHANGES |= dict.fromkeys(("vae_decoder", inputs.VAE_ENCODER, inputs.IMAGE_ENCODER), _once)


def gpu_config(model: str, values: dict, placement: Placement) -> ModelConfig:
    """The configuration of one model for `placement`."""
    config = read_config(model, values | {"denoise_instances": placement.denoise_instances})
    if model in CHANGES:
        CHANGES[model](config, placement)
    return config


def render(repository: Path, values: dict) -> None:
    """Write every model's config.pbtxt and code; raises KeyError for a placeholder without a value.

    `values` are the numbers of the templates, `takes` (the media of the checkpoint) and `image_dim` of CLIP's tokens.
    """
    for model in (*paths.MODELS, *inputs.encoders(values)):
        _write(repository, model, _substituted(model, values), has_code=True)


def render_gpu(repository: Path, values: dict, placement: Placement) -> None:
    """The same for GPUs; a model that Triton's own backend runs needs no code."""
    for model in (*paths.MODELS, *inputs.encoders(values)):
        config = gpu_config(model, values, placement)
        _write(repository, model, HEADER + text_format.MessageToString(config), has_code=config.backend == "python")


def _write(repository: Path, model: str, config: str, has_code: bool) -> None:
    version = paths.version(repository, model)
    version.mkdir(parents=True, exist_ok=True)
    with replacing(repository / model / "config.pbtxt") as temporary:
        temporary.write_text(config)
    code = paths.TEMPLATES / model / paths.VERSION / "model.py"
    if has_code and code.is_file():  # an ensemble has none
        shutil.copyfile(code, version / code.name)
