"""Which plan is built from which graph, on which GPU, for which shapes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from export import paths
from export.atomic import Journal
from export.manifest import sha256_file
from export.placement import Placement
from export.tensorrt.builder import Job, PlanError, PlanOptions, Profile, build_plan
from export.tensorrt.graphs import CLIP_GRAPH
from export.tensorrt.sizes import Sizes, clip_profiles, text_profiles, vae_profiles
from export.tensorrt.vae_cache import decoder_slots, encoder_slots
from stages.trt_encoders import CLIP_PLAN
from stages.trt_runtime import FIRST_PLAN, NEXT_PLAN
from stages.vae_runtime import FIRST, NEXT
from wan.config import ClipConfig, VAEConfig

Step = Callable[[str], None]


def jobs(
    repository: Path,
    graphs: Path,
    sizes: Sizes,
    networks: dict[str, VAEConfig | ClipConfig],
    options: PlanOptions,
    timing_cache: Path,
) -> dict[str, Job]:
    """The plans of a repository by `model/file`: of the text encoder and of `networks`, by model."""
    # Triton's TensorRT backend has no setting for the weight streaming budget, so such a plan would not load there.
    text_options = PlanOptions(**{**vars(options), "weight_streaming": False})
    text = paths.version(repository, "text_encoder") / "model.plan"
    built = {
        "text_encoder/model.plan": Job(
            graphs / "text_encoder/model.onnx", text, text_profiles(), text_options, timing_cache
        )
    }
    for model, config in networks.items():
        for plan, graph, profiles in _profiles(model, config, sizes):
            place = paths.version(repository, model) / plan
            built[f"{model}/{plan}"] = Job(graphs / model / graph, place, profiles, options, timing_cache)
    return built


def _profiles(model: str, config: VAEConfig | ClipConfig, sizes: Sizes) -> list[tuple[str, str, list[Profile]]]:
    """Plan, graph and profiles of each part of a network."""
    if isinstance(config, ClipConfig):
        return [(CLIP_PLAN, CLIP_GRAPH[1], clip_profiles(config))]
    encoder = model == "vae_encoder"
    slots = encoder_slots(config) if encoder else decoder_slots(config)
    parts = (FIRST_PLAN, FIRST, True), (NEXT_PLAN, NEXT, False)
    return [(plan, graph, vae_profiles(sizes, config, slots, first, encoder)) for plan, graph, first in parts]


def describe_device(index: int) -> dict:
    """Name and compute capability of a GPU; raises PlanError if there is none."""
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise PlanError(f"GPU {index} of the placement is not on this machine, which has {torch.cuda.device_count()}")
    capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
    return {"gpu": torch.cuda.get_device_name(index), "compute_capability": capability}


def _check_same_kind(placement: Placement, stage: str) -> None:
    kinds = {index: describe_device(index)["compute_capability"] for index in placement.gpus[stage]}
    if len(set(kinds.values())) > 1:
        shown = ", ".join(f"GPU {index}: {kind}" for index, kind in kinds.items())
        raise PlanError(
            f"{stage} is placed on GPUs of different compute capability ({shown}); one plan cannot serve them"
        )


def build_plans(trt, all_jobs: dict[str, Job], placement: Placement, journal: Journal, step: Step) -> dict:
    """Build every plan that an earlier run did not finish, each on a GPU that will run it; returns the manifest's `plans`."""
    plans = {}
    bars = partial(tqdm, leave=False, disable=None)
    for name, job in all_jobs.items():
        stage = name.split("/")[0]
        _check_same_kind(placement, stage)

        def run(name=name, job=job, device=placement.gpus[stage][0]):
            step(f"TensorRT plan {name}: {', '.join(profile.name for profile in job.profiles)}")
            with torch.cuda.device(device):
                built = build_plan(trt, job, bars)
            return built | describe_device(device) | {"bytes": job.plan.stat().st_size, "sha256": sha256_file(job.plan)}

        plans[name] = journal.step(f"plan {name}", [job.plan], run)
    return plans
