"""From a checkpoint to a complete Triton model repository: `python -m export CHECKPOINT --target cpu --out DIR`."""

import os

# ONNX Runtime otherwise writes an id of the machine below HOME and reports its use to Microsoft.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
