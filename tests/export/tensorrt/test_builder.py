"""The builder and the runtime against TensorRT's real Python bindings, oldest and newest that are supported."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from export.tensorrt.builder import PlanError, PlanOptions, TensorRTMissing, load_tensorrt

STUB = Path(__file__).parent / "stub"
ROOT = Path(__file__).resolve().parents[3]
CACHE = ROOT / "build" / "tensorrt-bindings"
VERSIONS = {
    "10.5.0": "tensorrt-cu12-bindings",
    "10.14.1.48.post1": "tensorrt-cu12-bindings",
    "11.4.0.106": "tensorrt-cu13-bindings",
}


def _bindings(version: str) -> Path:
    """The unpacked wheel, downloaded once; 1 MB each, without the libraries, which are hundreds."""
    folder = CACHE / version
    if not folder.is_dir():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE / "wheels")]
        answer = subprocess.run([*command, f"{VERSIONS[version]}=={version}"], capture_output=True, text=True)
        if answer.returncode:
            pytest.skip(
                f"{VERSIONS[version]}=={version} cannot be downloaded: {answer.stderr.strip().splitlines()[-1:]}"
            )
        name = VERSIONS[version].replace("-", "_")
        with zipfile.ZipFile(next((CACHE / "wheels").glob(f"{name}-{version}-*.whl"))) as wheel:
            wheel.extractall(folder)
    return folder


@pytest.fixture(scope="module", params=VERSIONS)
def spied(request, tmp_path_factory) -> dict:
    """What happened when `drive.py` ran over the bindings of one version."""
    bindings, folder = _bindings(request.param), tmp_path_factory.mktemp("trt")
    major = request.param.split(".")[0]
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        library = f"lib{name}.so.{major}"
        compile_ = [
            "gcc",
            "-shared",
            "-fPIC",
            f"-Wl,-soname,{library}",
            "-o",
            folder / library,
            STUB / "stub.c",
            "-lstdc++",
        ]
        subprocess.run(compile_, check=True)
    arguments = [folder, bindings, folder, major]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.export.tensorrt.stub.drive", *map(str, arguments)]
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1]) | {"asked": request.param}


def _calls(calls: list, name: str) -> list[list]:
    return [arguments for _, member, arguments in calls if member == name]


def test_every_call_is_one_that_the_bindings_accept(spied):
    assert spied["version"] == spied["asked"]
    calls = spied["build"]["calls"]
    assert _calls(calls, "create_network")[0] == [str(spied["build"]["strongly_typed"])]  # and nothing else
    assert _calls(calls, "parse_from_file") == [[repr(str(Path(_calls(calls, "parse_from_file")[0][0].strip("'"))))]]
    assert _calls(calls, "set_memory_pool_limit") == [["MemoryPoolType:WORKSPACE", str(1 << 30)]]
    flags = {arguments[0] for arguments in _calls(calls, "set_flag")}
    assert flags == {"BuilderFlag:WEIGHT_STREAMING", "BuilderFlag:VERSION_COMPATIBLE"}
    assert _calls(calls, "hardware_compatibility_level") == [["HardwareCompatibilityLevel:AMPERE_PLUS"]]
    assert _calls(calls, "set_shape")[0] == [
        "'LATENTS'",
        "(1, 16, 1, 8, 8)",
        "(1, 16, 1, 60, 104)",
        "(1, 16, 1, 90, 160)",
    ]
    assert len(_calls(calls, "add_optimization_profile")) == 2
    assert _calls(calls, "progress_monitor") == [["Monitor:"]]
    assert _calls(calls, "build_serialized_network") == [["INetworkDefinition", "IBuilderConfig"]]
    assert spied["build"]["plan"] == "a plan"


def test_manifest_entry_names_version_options_and_profiles(spied):
    built = spied["build"]["built"]
    assert built["tensorrt"] == spied["asked"]
    assert built["options"]["weight_streaming"]
    assert built["profiles"][1] == {
        "name": "b",
        "shapes": {"LATENTS": {"min": [1, 16, 1, 8, 8], "opt": [1, 16, 1, 60, 104], "max": [1, 16, 1, 90, 160]}},
    }


def test_errors_of_the_parser_name_node_and_operator(spied):
    message = spied["failures"]["parse"]
    assert message.count("node 7 resize_3 (Resize): type is not supported [UNSUPPORTED_NODE]") == 2
    assert "cannot build x.plan" in spied["failures"]["build"]
    assert "refuses the profile a" in spied["failures"]["profile"]


def test_progress_shows_two_levels_and_closes_what_it_opened(spied):
    assert spied["monitor"]["log"] == ["Building Engine", "Tactics", "closed at 2 of 2", "closed at 3 of 3"]
    assert spied["monitor"]["going_on"] == [True, True]


def test_runtime_calls_are_ones_that_the_bindings_accept(spied):
    calls = spied["run"]
    assert _calls(calls, "weight_streaming_budget_v2") == [["500"]]
    assert _calls(calls, "create_execution_context") == [["ExecutionContextAllocationStrategy:ON_PROFILE_CHANGE"]]
    assert _calls(calls, "set_optimization_profile_async") == [["1", "0"]]
    assert _calls(calls, "set_input_shape") == [["'LATENTS'", "(1, 16, 1, 8, 8)"]]
    assert [arguments[0] for arguments in _calls(calls, "set_tensor_address")] == ["'LATENTS'", "'FRAMES'"]
    assert _calls(calls, "execute_async_v3") == [["0"]]


def test_without_tensorrt_the_error_says_what_to_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", None)
    with pytest.raises(TensorRTMissing, match=r"on the GPU node[^\n]*\n  python -m export X --target gpu"):
        load_tensorrt("python -m export X --target gpu")


def test_bad_options_are_refused():
    with pytest.raises(PlanError, match="hardware compatibility is 'all'; allowed: none, ampere_plus"):
        PlanOptions(hardware_compatibility="all")
    with pytest.raises(PlanError, match="optimization level is 6; allowed: 0 to 5"):
        PlanOptions(optimization_level=6)
