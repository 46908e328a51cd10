"""ONNX Runtime reports nothing: it makes no id of the machine, and nothing that it could send."""

import os
import subprocess
import sys

import pytest

SESSION = """
import {package}
import onnxruntime
from onnx import TensorProto, helper
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [value("x")], [value("y")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
onnxruntime.InferenceSession(model.SerializeToString()).run(None, {{"x": [1.0]}})
"""


@pytest.mark.parametrize("package", ["stages", "export"])
def test_nothing_is_written_below_home(package, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"} | {
        "HOME": str(tmp_path)
    }
    subprocess.run([sys.executable, "-c", SESSION.format(package=package)], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
