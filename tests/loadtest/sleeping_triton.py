"""A Triton model repository with contract 1's ensemble over stages that sleep: known times on a real server."""

from pathlib import Path

STAGE = """
import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            {body}
        return answers
"""
ENCODER = """text = pb_utils.get_input_tensor_by_name(request, "PROMPT").as_numpy()[0].decode()
            if text == "fail":
                answers.append(pb_utils.InferenceResponse([], pb_utils.TritonError("PROMPT is 'fail'")))
                continue
            time.sleep({encode})
            out = pb_utils.Tensor("CONTEXT", np.full((4, 8), len(text), np.float32))
            answers.append(pb_utils.InferenceResponse([out]))"""
DENOISE = """steps = pb_utils.get_input_tensor_by_name(request, "STEPS")
            count = int(steps.as_numpy()[0]) if steps is not None else 2
            pb_utils.get_input_tensor_by_name(request, "CONTEXT").as_numpy()
            time.sleep({step} * count)
            seconds = {{"text_encoder": {encode}, "denoise": {step} * count, "vae_decoder": 0.0}}
            info = json.dumps({{"seconds": seconds}})
            answers.append(pb_utils.InferenceResponse([
                pb_utils.Tensor("FRAMES", np.arange(5 * 16 * 16 * 3).astype(np.uint8).reshape(5, 16, 16, 3)),
                pb_utils.Tensor("INFO", np.array([info.encode()], object))]))"""
OPTIONAL = """, { name: "STEPS" data_type: TYPE_INT32 dims: [ 1 ] optional: true },
  { name: "SEED" data_type: TYPE_INT64 dims: [ 1 ] optional: true }"""
OUTPUTS = """output [ { name: "FRAMES" data_type: TYPE_UINT8 dims: [ -1, -1, -1, 3 ] },
  { name: "INFO" data_type: TYPE_STRING dims: [ 1 ] } ]"""


def write_repository(root: Path, encode: float = 0.02, step: float = 0.03, cached: bool = False) -> Path:
    """Write the repository; a request sleeps encode (unless `cached`) + step * STEPS (default 2) seconds."""
    configs = {
        "text_encoder": """backend: "python"
input [ { name: "PROMPT" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "CONTEXT" data_type: TYPE_FP32 dims: [ 4, 8 ] } ]""",
        "denoise": f"""backend: "python"
input [ {{ name: "CONTEXT" data_type: TYPE_FP32 dims: [ 4, 8 ] }}{OPTIONAL} ]
{OUTPUTS}""",
        "wan": f"""platform: "ensemble"
input [ {{ name: "PROMPT" data_type: TYPE_STRING dims: [ 1 ] }}{OPTIONAL} ]
{OUTPUTS}
ensemble_scheduling {{ step [
  {{ model_name: "text_encoder" model_version: -1 input_map {{ key: "PROMPT" value: "PROMPT" }}
     output_map {{ key: "CONTEXT" value: "context" }} }},
  {{ model_name: "denoise" model_version: -1 input_map {{ key: "CONTEXT" value: "context" }}
     input_map {{ key: "STEPS" value: "STEPS" }} input_map {{ key: "SEED" value: "SEED" }}
     output_map {{ key: "FRAMES" value: "FRAMES" }} output_map {{ key: "INFO" value: "INFO" }} }} ] }}""",
    }
    if cached:
        configs["text_encoder"] += "\nresponse_cache { enable: true }"
    bodies = {"text_encoder": ENCODER, "denoise": DENOISE}
    for name, config in configs.items():
        folder = root / name / "1"
        folder.mkdir(parents=True)
        kind = "" if name == "wan" else "\ninstance_group [ { kind: KIND_CPU count: 1 } ]"
        (root / name / "config.pbtxt").write_text(f'name: "{name}"\nmax_batch_size: 0\n{config}{kind}\n')
        if name in bodies:
            code = STAGE.replace("{body}", bodies[name].format(encode=encode, step=step))
            (folder / "model.py").write_text(code)
    (root / "manifest.json").write_text("{}")  # the launcher asks for one
    return root
