"""vLLM-Omni and SGLang: their create is `POST /v1/videos` too; this is what their bodies say beyond ours."""

from contract.media import MEDIA
from contract.parameters import BY_NAME
from service.api.shapes.translation import ANY, without

VLLM_OMNI = {
    "enable_frame_interpolation": (),
    "frame_interpolation_exp": ANY,  # of an interpolation that was refused or not asked for
    "frame_interpolation_scale": ANY,
    "frame_interpolation_model_path": ANY,
    "boundary_ratio": (),
    "true_cfg_scale": ("1", "1.0"),
    "n": ("1",),
}
SGLANG = {
    "generator_device": ANY,  # noise is always drawn on the CPU, so that a seed means one video
    "enable_teacache": (),  # the threshold of the cache says it here
    "output_quality": ("default", "maximum"),
    "output_compression": (),
    "output_path": (),
    "diffusers_kwargs": (),
    "num_outputs_per_prompt": ("1",),
    "quality": ("standard",),
}
FILES = {name for medium in MEDIA for name in (medium.name, *medium.aliases)}  # null where there is none
FOREIGN = {name: harmless for name, harmless in {**VLLM_OMNI, **SGLANG}.items() if name not in BY_NAME}


def plain(values: dict) -> dict:
    """The body of `POST /v1/videos` without what only other servers know, as long as that asks for nothing."""
    return without({name: value for name, value in values.items() if value is not None or name not in FILES}, FOREIGN)
