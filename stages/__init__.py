"""What the Python models of the repository share: input checks, run directory, settings, artifacts, runtimes, metrics."""

import os

# ONNX Runtime otherwise writes an id of the machine below HOME and reports its use to Microsoft.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
