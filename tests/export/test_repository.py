"""Configurations for a CPU and for 1, 2, 4 and 8 GPUs, these read back as Triton's own protobuf."""

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from export.paths import MODELS
from export.placement import parse_placement
from export.repository import read_config, render, render_gpu

VALUES = {"text_len": 512, "text_dim": 4096, "z_dim": 16, "denoise_instances": 3}
PLACEMENTS = {
    1: "text_encoder=0,denoise=0,vae_decoder=0",
    2: "text_encoder=0,denoise=1,vae_decoder=0",
    4: "text_encoder=0,denoise=1-3,vae_decoder=0",
    8: "text_encoder=0,denoise=1-6,vae_decoder=7",
}


def _render(folder, gpus: int, instances: int = 1) -> dict[str, ModelConfig]:
    render_gpu(folder, VALUES, parse_placement(PLACEMENTS[gpus], instances))
    return {model: text_format.Parse((folder / model / "config.pbtxt").read_text(), ModelConfig()) for model in MODELS}


@pytest.mark.parametrize("gpus", PLACEMENTS)
def test_instances_sit_where_the_placement_says(tmp_path, gpus):
    configs = _render(tmp_path, gpus, instances=2)
    placement = parse_placement(PLACEMENTS[gpus])
    for stage, indices in placement.gpus.items():
        (group,) = configs[stage].instance_group
        assert group.kind == ModelInstanceGroup.KIND_GPU
        assert tuple(group.gpus) == indices
        assert group.count == (2 if stage == "denoise" else 1)
    assert configs["tokenizer"].instance_group[0].kind == ModelInstanceGroup.KIND_CPU


def test_text_encoder_is_a_plan_under_tritons_own_backend(tmp_path):
    config = _render(tmp_path, 1)["text_encoder"]
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert not config.response_cache.enable  # holds only what lies in CPU memory
    assert [(t.name, list(t.dims)) for t in config.input] == [("IDS", [-1, 512]), ("MASK", [-1, 512])]
    assert [(t.name, list(t.dims)) for t in config.output] == [("CONTEXT", [-1, 512, 4096])]
    assert not (tmp_path / "text_encoder" / "1" / "model.py").exists()


def test_tensors_cross_through_the_host_so_that_no_stage_opens_a_context_on_anothers_gpu(tmp_path):
    configs = _render(tmp_path, 2)
    for model in ("denoise", "vae_decoder"):
        assert "FORCE_CPU_ONLY_INPUT_TENSORS" not in configs[model].parameters
        assert (tmp_path / model / "1" / "model.py").is_file()


def test_ensemble_maps_only_tensors_that_exist_and_is_otherwise_that_of_the_cpu(tmp_path):
    configs = _render(tmp_path, 1)
    ensemble = configs["wan"]
    for step in ensemble.ensemble_scheduling.step:
        model = configs[step.model_name]
        assert set(step.input_map) <= {tensor.name for tensor in model.input}
        assert set(step.output_map) <= {tensor.name for tensor in model.output}
        required = {tensor.name for tensor in model.input if not tensor.optional}
        assert required <= set(step.input_map)
    cpu = read_config("wan", VALUES)
    assert list(ensemble.input) == list(cpu.input)
    assert list(ensemble.output) == list(cpu.output)


def test_every_model_has_its_configuration_with_the_numbers_filled_in_and_its_code(tmp_path):
    render(tmp_path, VALUES)
    for model in MODELS:
        config = (tmp_path / model / "config.pbtxt").read_text()
        assert f'name: "{model}"' in config
        assert "$" not in config
        assert (tmp_path / model / "1" / "model.py").is_file() == (model != "wan")
    assert "count: 3" in (tmp_path / "denoise" / "config.pbtxt").read_text()
    assert "dims: [ 1, 512, 4096 ]" in (tmp_path / "text_encoder" / "config.pbtxt").read_text()


def test_a_number_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(KeyError, match="z_dim"):
        render(tmp_path, {name: value for name, value in VALUES.items() if name != "z_dim"})
