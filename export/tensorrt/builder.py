"""Builds TensorRT plans from strongly typed ONNX graphs, with TensorRT 10 or 11.

Only what both versions have is used: networks are strongly typed, the types come from the graph, no precision flags.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from export.atomic import replacing
from stages.trt_runtime import import_tensorrt
from wan.errors import WanError

logger = logging.getLogger(__name__)
SHOWN_PHASES = 2  # levels; deeper ones come and go too fast to read
HARDWARE = ("none", "ampere_plus", "same_compute_capability")


class PlanError(WanError):
    """A plan cannot be built."""


class TensorRTMissing(PlanError):
    """This machine has no TensorRT; everything that does not need it is done."""


@dataclass(frozen=True)
class ShapeRange:
    """What one input may be in a profile; `opt` is what the kernels are chosen for."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """An optimization profile: a name for people, and a range for every dynamic input."""

    name: str
    shapes: dict[str, ShapeRange]


@dataclass(frozen=True)
class PlanOptions:
    """How plans are built. `workspace_bytes` None leaves the limit to TensorRT, which is all of the GPU's memory."""

    workspace_bytes: int | None = None
    optimization_level: int = 3
    weight_streaming: bool = False
    version_compatible: bool = False
    hardware_compatibility: str = "none"

    def __post_init__(self):
        if self.hardware_compatibility not in HARDWARE:
            raise PlanError(
                f"hardware compatibility is {self.hardware_compatibility!r}; allowed: {', '.join(HARDWARE)}"
            )
        if not 0 <= self.optimization_level <= 5:
            raise PlanError(f"optimization level is {self.optimization_level}; allowed: 0 to 5")


@dataclass(frozen=True)
class Job:
    """One plan to build."""

    onnx: Path
    plan: Path
    profiles: list[Profile]
    options: PlanOptions = field(default_factory=PlanOptions)
    timing_cache: Path | None = None


def load_tensorrt(command: str):
    """TensorRT's Python module. Raises TensorRTMissing with the `command` that continues on a machine that has it."""
    try:
        return import_tensorrt()
    except ImportError as error:
        raise TensorRTMissing(
            f"TensorRT is not installed here ({error}). All that does not need it is done and kept. Run the same command "
            f"on the GPU node, in the tritonserver image that will serve the plans:\n  {command}"
        ) from error


def _collecting_logger(trt, errors: list[str]):
    """A TensorRT logger: errors are kept for the exception, warnings go to Python's log."""

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, message):
            if severity <= trt.ILogger.Severity.ERROR:
                errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING:
                logger.warning("TensorRT: %s", message)

    return Logger()


def progress_monitor(trt, bars: Callable):
    """A TensorRT progress monitor that shows the two outermost levels of phases with `bars`, a factory such as tqdm.

    A bar's total is the phase's number of steps. Ctrl-C ends the build at the next step.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self):
            trt.IProgressMonitor.__init__(self)
            self.open, self.depth = {}, {}
            self.interrupted = False

        def phase_start(self, phase_name, parent_phase, num_steps):
            self.depth[phase_name] = self.depth.get(parent_phase, -1) + 1
            if self.depth[phase_name] < SHOWN_PHASES:
                self.open[phase_name] = bars(total=num_steps, desc=phase_name)

        def step_complete(self, phase_name, step):
            try:
                if (bar := self.open.get(phase_name)) is not None:
                    bar.update(step + 1 - bar.n)
            except KeyboardInterrupt:  # an exception must not cross into C++
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, phase_name):
            if (bar := self.open.pop(phase_name, None)) is not None:
                bar.update(bar.total - bar.n)
                bar.close()

    return Monitor()


def _parse(trt, job: Job, network, trt_logger) -> None:
    """Read the graph into `network`; raises PlanError with every error of the parser."""
    parser = trt.OnnxParser(network, trt_logger)
    if parser.parse_from_file(str(job.onnx)):  # by path, since weights may lie beside the graph
        return
    lines = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        lines.append(
            f"node {error.node()} {error.node_name()} ({error.node_operator()}): {error.desc()} [{error.code()}]"
        )
    raise PlanError(f"TensorRT cannot read {job.onnx}:\n  " + "\n  ".join(lines or ["no reason given"]))


def _configure(trt, builder, job: Job, monitor):
    """The builder configuration: limits, flags, profiles. Raises PlanError for what this TensorRT does not have."""
    options, config = job.options, builder.create_builder_config()
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.builder_optimization_level = options.optimization_level
    if options.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatibility != "none":
        level = getattr(trt.HardwareCompatibilityLevel, options.hardware_compatibility.upper(), None)
        if level is None:
            raise PlanError(
                f"TensorRT {trt.__version__} has no hardware compatibility {options.hardware_compatibility!r}"
            )
        config.hardware_compatibility_level = level
    if monitor is not None:
        config.progress_monitor = monitor
    for profile in job.profiles:
        optimization = builder.create_optimization_profile()
        for name, shapes in profile.shapes.items():
            optimization.set_shape(name, shapes.min, shapes.opt, shapes.max)
        if config.add_optimization_profile(optimization) < 0:
            raise PlanError(f"TensorRT refuses the profile {profile.name} for {job.onnx}: {profile.shapes}")
    return config


def _use_timing_cache(config, path: Path | None) -> None:
    if path is None:
        return
    stored = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(stored), False):
        logger.warning("%s is of another GPU or TensorRT; starting an empty one", path)
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _keep_timing_cache(config, path: Path | None) -> None:
    if path is not None:
        with replacing(path) as temporary:
            temporary.write_bytes(config.get_timing_cache().serialize())


def build_plan(trt, job: Job, bars: Callable | None = None) -> dict:
    """Build one plan on the current CUDA device; returns what the manifest says of it except for the GPU.

    Raises PlanError with TensorRT's own messages.
    """
    errors: list[str] = []
    trt_logger = _collecting_logger(trt, errors)
    builder = trt.Builder(trt_logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, job, network, trt_logger)
    monitor = progress_monitor(trt, bars) if bars else None
    config = _configure(trt, builder, job, monitor)
    _use_timing_cache(config, job.timing_cache)
    plan = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise PlanError(
            f"TensorRT cannot build {job.plan.name} from {job.onnx}:\n  " + "\n  ".join(errors or ["no reason given"])
        )
    job.plan.parent.mkdir(parents=True, exist_ok=True)
    with replacing(job.plan) as temporary:
        temporary.write_bytes(plan)
    _keep_timing_cache(config, job.timing_cache)
    profiles = [asdict(profile) for profile in job.profiles]
    return {"tensorrt": trt.__version__, "options": asdict(job.options), "profiles": profiles}
