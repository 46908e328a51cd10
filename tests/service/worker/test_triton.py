"""The client of the ensemble, against the real server."""

import asyncio

import pytest
from tritonclient.utils import InferenceServerException

from service.errors import GenerationFailed, GenerationRejected
from service.worker.triton import TritonGenerator, _translated

# A request as it was stored before the lossy options could be asked for.
OLD = {"prompt": "a red circle", "negative_prompt": "", "width": 32, "height": 32, "num_frames": 5, "steps": 8,
       "guidance_scale": 3.0, "flow_shift": 3.0, "sampler": "unipc", "cache_threshold": 0.0, "seed": 1, "fps": 16}  # fmt: skip


def generate(triton, request: dict) -> dict:
    """INFO of one request."""

    async def call():
        generator = TritonGenerator(triton.grpc_url)
        try:
            return await generator.generate("", request)
        finally:
            await generator.close()

    return asyncio.run(call())[1]


def test_a_job_stored_without_the_lossy_options_still_runs(triton):
    info = generate(triton, OLD)
    assert (info["cache"], info["cache_threshold"], info["guidance_end"], info["skipped"]) == ("teacache", 0.0, 1.0, [])


def test_lossy_options_of_a_job_reach_the_model(triton):
    info = generate(triton, OLD | {"cache": "magcache", "cache_threshold": 0.5, "guidance_end": 0.5})
    assert (info["cache"], info["cache_threshold"], info["guidance_end"]) == ("magcache", 0.5, 0.5)
    assert info["skipped"]
    assert info["forwards"] < 2 * info["steps_computed"]


@pytest.mark.parametrize(
    ("option", "named"), [({"cache": "none"}, "CACHE is 'none'"), ({"guidance_end": 2.0}, "GUIDANCE_END is 2.0")]
)
def test_a_bad_option_is_rejected_by_name(triton, option, named):
    with pytest.raises(GenerationRejected, match=named):
        generate(triton, OLD | option)


@pytest.mark.parametrize(
    ("message", "whose"),
    [
        ("[wan:between_stages] LATENTS is 'NaN or infinity'; allowed: finite numbers", GenerationFailed),
        (
            "in ensemble 'wan', [wan:between_stages] NEGATIVE_CONTEXT is 'NaN or infinity'; allowed: finite numbers",
            GenerationFailed,
        ),
        ("in ensemble 'wan', PROMPT is 'LATENTS is'; allowed: less", GenerationRejected),
        ("WIDTH is 17; allowed: a multiple of 16", GenerationRejected),
    ],
)
def test_the_caller_is_not_blamed_for_what_stages_pass_to_each_other(message, whose):
    assert type(_translated(InferenceServerException(message, "StatusCode.INVALID_ARGUMENT"))) is whose
