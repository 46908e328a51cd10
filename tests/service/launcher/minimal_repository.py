"""A model repository with one small Python model, which starts in a second: for the tests of the launcher."""

from pathlib import Path

CONFIG = """
name: "echo"
backend: "python"
max_batch_size: 0
input [ { name: "X" data_type: TYPE_INT32 dims: [ -1 ] } ]
output [ { name: "Y" data_type: TYPE_INT32 dims: [ -1 ] } ]
instance_group [ { kind: KIND_CPU count: 2 } ]
"""
STALL = 99  # as the first number of X keeps the model busy for ten minutes
MODEL = """
import os
import time
import triton_python_backend_utils as pb_utils
from stages.settings import load_settings  # the project is importable

class TritonPythonModel:
    def initialize(self, args):
        {initialize}

    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "X").as_numpy() for request in requests]
        if inputs[0][0] == {stall}:
            time.sleep(600)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", x)]) for x in inputs]
"""


def write(root: Path, initialize: str = "pass") -> Path:
    """Write the repository below `root`; `initialize` is the body of the model's method."""
    version = root / "repository" / "echo" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL.format(initialize=initialize, stall=STALL))
    (version.parent / "config.pbtxt").write_text(CONFIG)
    (root / "repository" / "manifest.json").write_text("{}")
    return root / "repository"
