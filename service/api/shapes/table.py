"""Every shape of the API: where it is, what is different from its model, and how it was checked."""

from dataclasses import dataclass

from fastapi import APIRouter

from service.api import accounts, loras, videos
from service.api.shapes import lightx2v, openai, openrouter, tensorrt_llm

BY_DOCUMENTATION = "requests written after its documentation"


@dataclass(frozen=True)
class Shape:
    """`routers`: what serves it; `differs`: from the server or service that it is named after."""

    name: str
    paths: str
    routers: tuple[APIRouter, ...]
    differs: str
    checked: str


SHAPES = (
    Shape(
        "OpenAI", "/v1/videos…", (videos.router, loras.router, openai.router),
        "`edits` and `extensions` take a file or the id of a finished video, and are refused where the checkpoint does not "
        "change, or not continue, clips, `characters` always; a remix takes the prompt only and keeps the seed; `seconds` and `size` are free; `status` may also be `cancelled`, and so may "
        "the type of a webhook (`video.completed`, `video.failed`, `video.cancelled`). The service at OpenAI itself "
        "ended on 2026-09-24.",
        "its client `openai`",
    ),
    Shape(
        "vLLM-Omni", "/v1/videos…", (),
        "Create takes JSON as well as its multipart form. Interpolation and `boundary_ratio` are refused "
        "unless they ask for nothing; `lora` names registered adapters (`/v1/loras`), with `scale` or `strength` and no path; `guidance_scale_2` is refused where the checkpoint has one expert.",
        "`litellm`, and " + BY_DOCUMENTATION,
    ),
    Shape(
        "SGLang", "/v1/videos…", (),
        "`generator_device` has no effect (noise is always drawn on the CPU); `output_path`, `diffusers_kwargs` and "
        "`enable_teacache` are refused unless they ask for nothing. Each request names its adapters "
        "(`lora`, `lora_path`), so there is no `/v1/set_lora`.",
        BY_DOCUMENTATION,
    ),
    Shape(
        "TensorRT-LLM, MLPerf", "/v1/videos/generations", (tensorrt_llm.router,),
        "`latent_path` is refused; `video_path` is the place in the video store, a path or an s3:// address.",
        BY_DOCUMENTATION,
    ),
    Shape(
        "LightX2V", "/v1/tasks…", (lightx2v.router,),
        "`infer_steps` left out is the checkpoint's default and not 5; a `task_id` of one's own is refused; "
        "`lora_name` is a registered adapter (`/v1/loras`), at `lora_strength`; `save_result_path` has no effect: `/result` has the file, in parts if wanted; `all/running` concerns one's own "
        "tasks; tasks survive a restart.",
        BY_DOCUMENTATION,
    ),
    Shape(
        "OpenRouter", "/api/v1/videos…", (openrouter.router,),
        "One model and no prices; `resolution` says the shorter side; `expired` is a job whose deadline passed; addresses "
        "are relative; a callback carries `X-OpenRouter-Signature` and the signature of Standard Webhooks.",
        "its client `openrouter`",
    ),
)  # fmt: skip
ROUTERS = (accounts.router, *(router for shape in SHAPES for router in shape.routers))


def markdown() -> str:
    """The table of the documentation."""
    lines = ["| shape | paths | what is different | checked with |", "|---|---|---|---|"]
    lines += [f"| {s.name} | `{s.paths}` | {s.differs} | {s.checked} |" for s in SHAPES]
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
