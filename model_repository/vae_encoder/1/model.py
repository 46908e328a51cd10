"""SIZE and pictures or a clip to CONDITION."""

import triton_python_backend_utils as pb_utils

from stages.artifacts import Artifacts
from stages.beginning import begin
from stages.metrics import StageMetrics, slot
from stages.responses import answer
from stages.vae_encoder_stage import VaeEncoderStage


class TritonPythonModel:
    def initialize(self, args):
        metrics = StageMetrics(pb_utils, "vae_encoder", slot(args))
        self.stage = VaeEncoderStage(Artifacts.open(args), begin(), metrics)

    def execute(self, requests):
        return answer(pb_utils, requests, self.stage.handle, "vae_encoder")
