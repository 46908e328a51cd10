import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from export.dit import package as dit_package
from export.dit.formats import DitWeights
from export.dit.lora import Lora
from export.dit.package import package
from export.dit.precision import Precision, PrecisionError
from export.dit.quality import plot_errors
from wan import fp8
from wan.checkpoint import Checkpoint

SMALL_SHARD = 1 << 20


def _package(checkpoint, folder, precision, loras=(), **options) -> dict:
    source = Checkpoint.open(checkpoint)
    return package(
        source, DitWeights(source.dit_tensors()), folder, precision, list(loras), **({"recipe": "r"} | options)
    )


@pytest.fixture(scope="module")
def packaged(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp8")
    return folder, _package(checkpoint, folder, Precision("fp8"), shard_bytes=SMALL_SHARD)


def test_package_loads_as_a_checkpoint_with_fp8_layers(checkpoint, packaged):
    folder, described = packaged
    reference, dit = Checkpoint.open(checkpoint).load_dit(), Checkpoint.open(folder).load_dit()
    layers = [name for name, module in dit.named_modules() if isinstance(module, fp8.Fp8Linear)]
    assert len(layers) == 10 * reference.config.num_layers == described["errors"]["layers"]
    name = "blocks.1.cross_attn.v"
    expected = fp8.dequantize(*fp8.quantize_rows(reference.get_submodule(name).weight))
    layer = dit.get_submodule(name)
    assert torch.equal(fp8.dequantize(layer.weight, layer.weight_scale), expected)
    assert Checkpoint.open(folder).grid == Checkpoint.open(checkpoint).grid


def test_package_predicts_about_what_the_original_predicts(checkpoint, packaged):
    reference, dit = Checkpoint.open(checkpoint).load_dit(), Checkpoint.open(packaged[0]).load_dit()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, reference.config.in_channels, 2, 8, 8, generator=generator)
    context = torch.randn(1, 16, reference.config.text_dim, generator=generator)
    with torch.no_grad():
        a, b = (m(latents, torch.tensor([500.0]), context) for m in (reference, dit))
    relative = float((a - b).norm() / a.norm())
    assert 1e-4 < relative < 0.15


def test_packaging_continues_where_it_stopped(checkpoint, packaged, tmp_path):
    written = []

    def stop_in_the_middle(name, elements):
        written.append(name)
        if len(written) == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _package(checkpoint, tmp_path, Precision("fp8"), progress=stop_in_the_middle, shard_bytes=SMALL_SHARD)
    finished = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    assert finished
    assert not list(tmp_path.rglob("*.part"))
    _package(checkpoint, tmp_path, Precision("fp8"), shard_bytes=SMALL_SHARD)
    assert all(file.stat().st_mtime_ns == time for file, time in finished.items())
    for file in packaged[0].rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / file.relative_to(packaged[0])).read_bytes(), file.name


@pytest.mark.parametrize(("precision", "quantised"), [
    (Precision("bf16"), set()),
    (Precision("fp8-ffn", keep_first=1, keep_last=2), {f"blocks.{i}.ffn.{j}" for i in range(1, 4) for j in (0, 2)}),
])  # fmt: skip
def test_presets_and_kept_blocks_decide_what_is_quantised(checkpoint, precision, quantised):
    source = Checkpoint.open(checkpoint)
    entries = dit_package.contents(DitWeights(source.dit_tensors()), precision, source.dit_config().num_layers)
    assert {entry.name.removesuffix(".weight") for entry in entries if entry.is_fp8} == quantised


def test_stored_bytes_are_those_that_were_planned(packaged):
    folder, described = packaged
    size = 0
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            size += sum(t.numel() * t.element_size() for t in (handle.get_tensor(k) for k in handle.keys()))  # noqa: SIM118
    assert size == described["bytes"]
    assert described["groups"]["ffn"] == {"float8_e4m3fn": 12, "bfloat16": 12}


def test_precision_that_quantises_nothing_is_refused(checkpoint, tmp_path):
    with pytest.raises(PrecisionError, match="keep_first 5 and keep_last 3 leave none of 6 blocks"):
        _package(checkpoint, tmp_path, Precision("fp8", 5, 3))
    with pytest.raises(PrecisionError, match="precision is 'int4'; allowed: bf16, fp8, fp8-ffn"):
        Precision("int4")
    with pytest.raises(PrecisionError, match="keep_last is 2; allowed: 0, as bf16 quantises no block"):
        Precision("bf16", keep_last=2)


def test_lora_is_merged_before_quantisation(checkpoint, tmp_path):
    source = Checkpoint.open(checkpoint)
    weights = DitWeights(source.dit_tensors())
    shapes = {name: weights.shape(name) for name in weights.names}
    name = "blocks.0.ffn.0.weight"
    up, down = torch.ones(shapes[name][0], 1), torch.ones(1, shapes[name][1])
    save_file(
        {"blocks.0.ffn.0.lora_up.weight": up, "blocks.0.ffn.0.lora_down.weight": down}, tmp_path / "l.safetensors"
    )
    lora = Lora(tmp_path / "l.safetensors", 0.25, shapes)
    described = _package(checkpoint, tmp_path / "out", Precision("fp8"), [lora])
    assert described["loras"] == [{"file": "l.safetensors", "strength": 0.25, "parameters": 1}]
    layer = Checkpoint.open(tmp_path / "out").load_dit().blocks[0].ffn[0]
    expected = fp8.dequantize(*fp8.quantize_rows(weights.load(name) + 0.25))
    assert torch.equal(fp8.dequantize(layer.weight, layer.weight_scale), expected)


def test_error_report_ranks_layers_and_is_drawn(packaged, tmp_path):
    report = packaged[0] / dit_package.ERRORS_FILE
    layers = json.loads(report.read_text())["layers"]
    errors = [layer["relative_error"] for layer in layers]
    assert errors == sorted(errors, reverse=True)
    assert 0.01 < errors[-1] <= errors[0] < 0.04  # three mantissa bits: about 2.6 % of a Gaussian weight
    plot_errors(report, tmp_path / "errors.png")
    assert (tmp_path / "errors.png").read_bytes()[:4] == b"\x89PNG"
