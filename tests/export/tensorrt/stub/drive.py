"""Drives the builder and the runtime over the spied bindings; prints the calls as JSON. Run in a process of its own."""

import json
import sys
from pathlib import Path

import torch

from export.tensorrt.builder import Job, PlanError, PlanOptions, Profile, ShapeRange, build_plan, progress_monitor
from stages.trt_runtime import TrtEngine
from tests.export.tensorrt.stub.spy import Module, load

ANSWERS = {
    ("OnnxParser", "parse_from_file"): True,
    ("OnnxParser", "num_errors"): 2,
    ("IBuilderConfig", "add_optimization_profile"): 0,
    ("IBuilderConfig", "set_timing_cache"): True,
    ("Builder", "build_serialized_network"): b"a plan",
    ("ITimingCache", "serialize"): b"timings",
    ("ParserError", "node"): 7, ("ParserError", "node_name"): "resize_3", ("ParserError", "node_operator"): "Resize",
    ("ParserError", "desc"): "type is not supported", ("ParserError", "code"): "UNSUPPORTED_NODE",
    ("ICudaEngine", "streamable_weights_size"): 1000,
    ("IExecutionContext", "set_optimization_profile_async"): True,
    ("IExecutionContext", "set_input_shape"): True,
    ("IExecutionContext", "set_tensor_address"): True,
    ("IExecutionContext", "execute_async_v3"): True,
}  # fmt: skip
SHAPE = ShapeRange((1, 16, 1, 8, 8), (1, 16, 1, 60, 104), (1, 16, 1, 90, 160))


class Bar:
    """What the monitor needs of a progress bar."""

    log: list = []  # noqa: RUF012 (shared on purpose)

    def __init__(self, total: int, desc: str):
        self.total, self.n = total, 0
        self.log.append(desc)

    def update(self, count: int) -> None:
        self.n += count

    def close(self) -> None:
        self.log.append(f"closed at {self.n} of {self.total}")


def job(folder: Path, **options) -> Job:
    profiles = [Profile("a", {"LATENTS": SHAPE}), Profile("b", {"LATENTS": SHAPE})]
    return Job(folder / "graph.onnx", folder / "x.plan", profiles, PlanOptions(**options), folder / "timing.cache")


def build(real, folder: Path) -> dict:
    trt = Module(real, ANSWERS)
    everything = {"workspace_bytes": 1 << 30, "weight_streaming": True, "version_compatible": True}
    built = build_plan(trt, job(folder, hardware_compatibility="ampere_plus", **everything), Bar)
    strongly_typed = 1 << int(real.NetworkDefinitionCreationFlag.STRONGLY_TYPED)  # another bit in each major version
    return {
        "strongly_typed": strongly_typed,
        "calls": trt.calls,
        "built": built,
        "plan": (folder / "x.plan").read_text(),
    }


def failures(real, folder: Path) -> dict:
    """Messages of a graph that cannot be read and of a plan that cannot be built."""
    messages = {}
    for name, answers in {
        "parse": {("OnnxParser", "parse_from_file"): False},
        "build": {("Builder", "build_serialized_network"): None},
        "profile": {("IBuilderConfig", "add_optimization_profile"): -1},
    }.items():
        try:
            build_plan(Module(real, ANSWERS | answers), job(folder))
        except PlanError as error:
            messages[name] = str(error)
    return messages


def monitor(real) -> dict:
    """What TensorRT would call during a build."""
    Bar.log.clear()
    shown = progress_monitor(real, Bar)
    shown.phase_start("Building Engine", None, 3)
    shown.phase_start("Tactics", "Building Engine", 2)
    shown.phase_start("Timing", "Tactics", 5)
    going_on = [shown.step_complete("Timing", 0), shown.step_complete("Tactics", 1)]
    for phase in ("Timing", "Tactics", "Building Engine"):
        shown.phase_finish(phase)
    return {"log": list(Bar.log), "going_on": going_on}


def run(real, folder: Path) -> list:
    trt = Module(real, ANSWERS)
    (folder / "first.plan").write_bytes(b"a plan")
    engine = TrtEngine(trt, folder / "first.plan", weight_streaming=0.5)
    engine.execute(1, {"LATENTS": torch.zeros(1, 16, 1, 8, 8)}, {"FRAMES": torch.zeros(1, 3, 1, 64, 64)}, stream=0)
    return trt.calls


def main() -> None:
    libraries, bindings, folder = map(Path, sys.argv[1:4])
    real = load(libraries, bindings, int(sys.argv[4]))
    result = {"version": real.__version__, "build": build(real, folder), "failures": failures(real, folder)}
    print(json.dumps(result | {"monitor": monitor(real), "run": run(real, folder)}))


if __name__ == "__main__":
    main()
