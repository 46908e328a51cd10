"""A model of two experts on its way to a repository: both are packaged, and both must fit where they are put."""

import pytest
import torch

from export import __main__ as command
from export import manifest, memory, targets
from export.build import Build
from export.dit.formats import DitWeights, with_dit
from export.dit.package import ERRORS_FILE, PRECISION_FILE, dit_files, package, report_folders
from export.dit.precision import Precision
from export.dit.random_checkpoint import write_checkpoint
from export.options import Options
from export.placement import GIB, USABLE, PlacementError
from export.workstation import STAGES
from stages.artifacts import Artifacts
from stages.runtimes import open_denoiser
from stages.settings import StageSettings
from wan import fp8
from wan.checkpoint import EXPERT_FOLDERS, Checkpoint
from wan.errors import CheckpointError
from wan.pipeline import load_denoiser


@pytest.fixture(scope="module")
def root(checkpoint, tmp_path_factory):
    root = tmp_path_factory.mktemp("a14b")
    write_checkpoint("t2v-a14b", root, 2, checkpoint / "tokenizer", small=True)
    return root


def package_both(root, folder):
    source = Checkpoint.open(root)
    for expert in range(2):
        package(source, DitWeights(source.dit_tensors(expert)), folder, Precision("fp8"), [], "r", expert=expert)
    return Checkpoint.open(folder)


def test_both_experts_become_fp8_and_keep_their_places(root, tmp_path):
    source, packaged = Checkpoint.open(root), package_both(root, tmp_path)
    assert (packaged.dit_folders, packaged.boundary, packaged.grid) == (EXPERT_FOLDERS, 0.875, source.grid)
    for expert in range(2):
        layer = packaged.load_dit(expert=expert).blocks[1].ffn[0]
        expected = fp8.quantize_rows(source.load_dit(expert=expert).blocks[1].ffn[0].weight)
        assert torch.equal(fp8.dequantize(layer.weight, layer.weight_scale), fp8.dequantize(*expected))
    reports = report_folders(source, tmp_path)
    assert all((folder / name).is_file() for folder in reports for name in (PRECISION_FILE, ERRORS_FILE))


def test_every_file_of_both_experts_is_part_of_the_source(root):
    named = {file.parent.name for file in dit_files(Checkpoint.open(root)) if file.suffix == ".safetensors"}
    assert named == set(EXPERT_FOLDERS)
    before = manifest.describe_source(Checkpoint.open(root))
    assert {f"{folder}/config.json" for folder in EXPERT_FOLDERS} <= set(before["files"])


def test_a_pair_of_files_takes_the_places_of_both_experts(root, tmp_path):
    package_both(root, tmp_path)
    files = [tmp_path / folder for folder in EXPERT_FOLDERS]
    replaced = with_dit(Checkpoint.open(root), files)
    for expert in range(2):
        assert replaced.dit_tensors(expert).files[0].parent == files[expert]
    with pytest.raises(CheckpointError, match="1 DiTs were given; allowed: 2, high noise first"):
        with_dit(Checkpoint.open(root), files[:1])


def test_the_memory_of_both_is_planned_printed_and_refused(root, tmp_path):
    build = Build(root, tmp_path / "out", Options(gpus="1x80"))
    both = build.dit_packages
    assert (both.experts, both.blocks, build.blocks_on_device) == (2, 2, None)
    assert build.memory["denoise"].weights == both.total == both.outside + 4 * both.block
    table = memory.table(build.memory, build.placement, build.gpus, build.video)
    assert "denoise" in table
    assert both.words(None) == f"both experts stay on the GPU, {both.total / GIB:.1f} GiB"
    small = Build(root, tmp_path / "out", Options(gpus="1x0.5"))
    with pytest.raises(
        PlacementError, match="does not fit: GPU 0 needs .*; one expert at a time is on the GPU, .* which is the least"
    ):
        _ = small.placement


def test_where_only_one_expert_fits_the_other_waits_on_the_host(root, tmp_path):
    """Of any placement: a GPU with room for one is enough."""
    whole = Build(root, tmp_path / "out", Options(gpus="1x80"))
    needed = sum(stage.total for stage in whole.memory.values()) - whole.dit_packages.block
    build = Build(root, tmp_path / "out", Options(gpus=f"1x{needed / USABLE / GIB:.9f}"))
    assert build.blocks_on_device == 2
    assert build.memory["denoise"].weights == build.dit_packages.on_device(2) < build.dit_packages.total
    assert build.placement.gpus == whole.placement.gpus
    with pytest.raises(PlacementError, match=r"text_encoder, vae_decoder is missing; .* or auto$"):
        _ = Build(root, tmp_path / "out", Options(gpus="1x80", placement="denoise=0")).placement


def test_a_workstation_with_room_for_one_expert_serves_the_same_bits(root, tmp_path):
    """With the CPU for its GPU."""
    needs = Build(root, tmp_path, Options(device="cpu")).needs
    dit = needs.dit["float32"]
    usable = needs.rest + needs.text_streamed + dit.total - dit.block + STAGES * memory.CONTEXT
    build = Build(root, tmp_path, Options(device="cpu", vram=usable / USABLE / GIB))
    assert build.residency.startswith("float32; one expert at a time is on the GPU, 0.0 GiB; 0.0 GiB of the host's")
    build.wanted = {"source": {"sha256": ""}, "options": {}}
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "checkpoint").symlink_to(root)
    described = targets.workstation_description(build) | {"target": "workstation"}
    streamed = open_denoiser(Artifacts(described, tmp_path / "1", "cpu"), StageSettings())
    source = Checkpoint.open(root)
    resident = load_denoiser(source, source.card.geometry, torch.device("cpu"))
    request = source.card.request(prompt="a cat", seed=1, steps=4)
    given = resident.blank(torch.randn(512, 64, generator=torch.Generator().manual_seed(0)), request)
    expected, info = resident.run(given, request)
    assert {step.expert for step in info.plan} == {0, 1}
    found, info = streamed.run(given, request)
    assert torch.equal(found, expected)
    assert info.engine == resident.engine | {"blocks_on_device": "2 of 4"}


def test_the_cpu_target_copies_both(root, tmp_path):
    build = Build(root, tmp_path / "out", Options())
    assert targets.dit(build) == {}
    copied = {path.parent.name for path in build.repository.rglob("*.safetensors")}
    assert copied == set(EXPERT_FOLDERS)


def test_a_lora_for_one_of_two_experts_is_refused(root, tmp_path, capsys):
    assert command.main([str(root), "--out", str(tmp_path / "out"), "--lora", "/some/style.safetensors"]) == 1
    assert "has two experts; merging a LoRA into one of them is not done" in capsys.readouterr().err
