"""REQUEST and CONTEXTs to LATENTS, with progress, cancel and checkpoints through the run directory."""

import triton_python_backend_utils as pb_utils

from stages.artifacts import Artifacts
from stages.beginning import begin
from stages.denoise_stage import DenoiseStage
from stages.metrics import DenoiseMetrics, slot
from stages.responses import answer
from stages.turns import in_turn, turn


class TritonPythonModel:
    def initialize(self, args):
        self.artifacts = Artifacts.open(args)
        with turn(self.artifacts):
            self.stage = DenoiseStage(self.artifacts, begin(), DenoiseMetrics(pb_utils, slot(args)))

    def execute(self, requests):
        return answer(pb_utils, requests, in_turn(self.artifacts, self.stage.handle), "denoise")

    def finalize(self):
        self.stage.close()
