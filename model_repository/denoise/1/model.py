"""REQUEST and CONTEXTs to LATENTS, with progress, cancel and checkpoints through the run directory."""

import triton_python_backend_utils as pb_utils

from stages.artifacts import Artifacts
from stages.beginning import begin
from stages.denoise_stage import DenoiseStage
from stages.metrics import DenoiseMetrics, slot
from stages.responses import answer


class TritonPythonModel:
    def initialize(self, args):
        self.stage = DenoiseStage(Artifacts.open(args), begin(), DenoiseMetrics(pb_utils, slot(args)))

    def execute(self, requests):
        return answer(pb_utils, requests, self.stage.handle, "denoise")

    def finalize(self):
        self.stage.close()
