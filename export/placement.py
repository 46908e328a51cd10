"""Which stage runs on which GPU."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from contract.parallel import ONE_RANK, Degrees
from wan.errors import InvalidRequest, WanError

STAGES = ("text_encoder", "denoise", "vae_decoder")
HOST = "vae_decoder"  # beside which the encoders of pictures sit, where a checkpoint has them
GIB = 1 << 30
# Left to the driver, fragmentation and what the estimates miss.
USABLE = 0.95
_FORM = (
    "STAGE=GPUS for each of "
    + ", ".join(STAGES)
    + ", as in text_encoder=0,denoise=1-6,vae_decoder=7 (1-3+5 names GPUs 1, 2, 3, 5; denoise=0-7:cfg2xulysses4 lets 8 GPUs"
    + " make one video together), or auto"
)


class PlacementError(WanError):
    """A placement is malformed, or does not fit the GPUs."""


class DoesNotFit(PlacementError):
    """The memory of a GPU does not suffice."""


@dataclass(frozen=True)
class Gpu:
    index: int
    memory: int  # bytes
    name: str = ""
    capability: str = ""

    @property
    def usable(self) -> int:
        return int(self.memory * USABLE)


@dataclass(frozen=True)
class Placement:
    """GPU indices of each stage; `denoise_instances` of the denoise stage run on each of its GPUs.

    Or, by `parallel`, so many consecutive ones of its GPUs are one instance.
    """

    gpus: dict[str, tuple[int, ...]]
    denoise_instances: int = 1
    parallel: Degrees = ONE_RANK

    def instances(self, stage: str) -> int:
        """Instances of a stage on each of its GPUs."""
        return self.denoise_instances if stage == "denoise" else 1

    @property
    def slots(self) -> dict[str, int]:
        """How many requests each stage works on at once."""
        return {stage: len(self.leading(stage)) * self.instances(stage) for stage in self.gpus}

    def leading(self, stage: str) -> tuple[int, ...]:
        """Where Triton starts instances of a stage: on the first GPU of each group."""
        return self.gpus[stage][:: self.parallel.ranks if stage == "denoise" else 1]

    @property
    def used(self) -> list[int]:
        return sorted({index for indices in self.gpus.values() for index in indices})

    def load(self, index: int, memory: dict[str, int]) -> int:
        """Bytes that the stages of a GPU need together."""
        return sum(memory[stage] * self.instances(stage) for stage, indices in self.gpus.items() if index in indices)


def detect_gpus() -> list[Gpu]:
    """The GPUs of this machine, by nvidia-smi; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index,memory.total,name,compute_cap", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=60)
    if answer.returncode:
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines() if line.strip()]
    return [Gpu(int(index), int(memory) << 20, name, capability) for index, memory, name, capability in rows]


def parse_gpus(text: str) -> list[Gpu]:
    """`8x80` (eight GPUs of 80 GiB) or `80,80,141`; raises PlacementError."""
    if match := re.fullmatch(r"(\d+)x(\d+(?:\.\d+)?)", text):
        sizes = [float(match[2])] * int(match[1])
    else:
        try:
            sizes = [float(size) for size in text.split(",")]
        except ValueError:
            sizes = []
    if not sizes or any(size <= 0 for size in sizes):
        raise PlacementError(
            f"gpus is {text!r}; allowed: COUNTxGIB as in 8x80, or a size in GiB for each GPU as in 80,80,141"
        )
    return [Gpu(i, int(size * GIB)) for i, size in enumerate(sizes)]


def parse_placement(text: str, denoise_instances: int = 1) -> Placement:
    """A placement by hand; raises PlacementError."""
    gpus: dict[str, tuple[int, ...]] = {}
    parallel = ONE_RANK
    for item in text.split(","):
        stage, separator, where = item.strip().partition("=")
        if not separator or stage not in STAGES or stage in gpus:
            raise PlacementError(f"placement is {text!r}: {item!r} is not understood; allowed: {_FORM}")
        where, divided, degrees = where.partition(":")
        gpus[stage] = _indices(text, where)
        if divided:
            parallel = _together(text, stage, len(gpus[stage]), degrees, denoise_instances)
    if missing := [stage for stage in STAGES if stage not in gpus]:
        raise PlacementError(f"placement is {text!r}: {', '.join(missing)} is missing; allowed: {_FORM}")
    return Placement({stage: gpus[stage] for stage in STAGES}, denoise_instances, parallel)


def _together(text: str, stage: str, gpus: int, degrees: str, denoise_instances: int) -> Degrees:
    """How the GPUs of denoise make a video together; raises PlacementError where they cannot."""
    if stage != "denoise":
        raise PlacementError(f"placement is {text!r}: {stage} runs on one GPU at a time; only denoise can be divided")
    try:
        parallel = Degrees.parse(degrees)
    except InvalidRequest as error:
        raise PlacementError(
            f"placement is {text!r}: {degrees!r} is not understood; allowed: {error.allowed}"
        ) from None
    if gpus % parallel.ranks:
        raise PlacementError(
            f"placement is {text!r}: {parallel} takes {parallel.ranks} GPUs, or a multiple; it has {gpus}"
        )
    if denoise_instances > 1:
        raise PlacementError(
            f"denoise_instances is {denoise_instances}; allowed with {parallel}: 1, as two groups on the same GPUs would"
            " wait for each other"
        )
    return parallel


def _indices(text: str, where: str) -> tuple[int, ...]:
    indices: list[int] = []
    for part in where.split("+"):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise PlacementError(f"placement is {text!r}: {part!r} is not a GPU or a range of GPUs; allowed: {_FORM}")
        indices += range(int(match[1]), int(match[2] or match[1]) + 1)
    if len(set(indices)) != len(indices):
        raise PlacementError(f"placement is {text!r}: a GPU is named twice in {where!r}")
    return tuple(indices)


def auto_placement(gpus: list[Gpu], memory: dict[str, int], denoise_instances: int = 1) -> Placement:
    """The placement with the most denoise instances: the other stages take seconds of a job of minutes.

    Text encoder and decoder share a GPU with each other and with denoise where all of it fits; else denoise leaves that
    GPU, and only then do they part. Raises PlacementError with the numbers if nothing fits.
    """
    indices = tuple(gpu.index for gpu in gpus)
    candidates = [
        {"text_encoder": indices[:1], "denoise": indices, "vae_decoder": indices[-1:]},
        {"text_encoder": indices[:1], "denoise": indices, "vae_decoder": indices[:1]},
        {"text_encoder": indices[:1], "denoise": indices[1:], "vae_decoder": indices[:1]},
        {"text_encoder": indices[:1], "denoise": indices[1:], "vae_decoder": indices[-1:]},
        {"text_encoder": indices[:1], "denoise": indices[1:-1], "vae_decoder": indices[-1:]},
    ]
    placements = [
        with_encoders(Placement(candidate, denoise_instances), memory)
        for candidate in candidates
        if candidate["denoise"]
    ]
    for placement in placements:
        if not _overloaded(placement, gpus, memory):
            return placement
    check(placements[-1], gpus, memory)
    raise AssertionError("check() refuses what does not fit")


def with_encoders(placement: Placement, stages: Iterable[str]) -> Placement:
    """The same with a place for those of `stages` that a placement does not name."""
    beside = {stage: placement.gpus[HOST] for stage in stages if stage not in placement.gpus}
    return replace(placement, gpus=placement.gpus | beside)


def _overloaded(placement: Placement, gpus: list[Gpu], memory: dict[str, int]) -> list[Gpu]:
    return [gpu for gpu in gpus if placement.load(gpu.index, memory) > gpu.usable]


def check(placement: Placement, gpus: list[Gpu], memory: dict[str, int]) -> None:
    """Raises PlacementError for a GPU that does not exist, DoesNotFit for one whose memory does not suffice, with the numbers."""
    known = {gpu.index for gpu in gpus}
    if absent := [index for index in placement.used if index not in known]:
        raise PlacementError(
            f"placement uses GPU {absent[0]}; there are {len(gpus)}: {', '.join(map(str, sorted(known)))}"
        )
    lines = []
    for gpu in _overloaded(placement, gpus, memory):
        parts = [
            f"{stage} {memory[stage] * placement.instances(stage) / GIB:.1f}"
            for stage, at in placement.gpus.items()
            if gpu.index in at
        ]
        need = placement.load(gpu.index, memory) / GIB
        lines.append(
            f"GPU {gpu.index} needs {need:.1f} GiB ({', '.join(parts)}), {gpu.usable / GIB:.1f} of {gpu.memory / GIB:.1f} are usable"
        )
    if lines:
        raise DoesNotFit("the placement does not fit: " + "; ".join(lines))


def choose(
    text: str, gpus: list[Gpu], memory: dict[str, int], denoise_instances: int, say: Callable[[str], None]
) -> Placement:
    """The placement that `text` asks for, checked against `gpus`; without GPUs only one by hand, unchecked."""
    if text == "auto":
        if not gpus:
            raise PlacementError(
                "placement is auto, but no GPU was found here; say what the target has, as in --gpus 8x80"
            )
        return auto_placement(gpus, memory, denoise_instances)
    placement = with_encoders(parse_placement(text, denoise_instances), memory)
    if gpus:
        check(placement, gpus, memory)
    else:
        say("no GPU was found and --gpus was not given: whether the placement fits was not checked")
    return placement
