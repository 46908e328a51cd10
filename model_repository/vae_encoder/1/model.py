"""SIZE and pictures or a clip to CONDITION."""

import triton_python_backend_utils as pb_utils

from stages.artifacts import Artifacts
from stages.beginning import begin
from stages.metrics import StageMetrics, slot
from stages.responses import answer
from stages.turns import in_turn, turn
from stages.vae_encoder_stage import VaeEncoderStage


class TritonPythonModel:
    def initialize(self, args):
        self.artifacts = Artifacts.open(args)
        metrics = StageMetrics(pb_utils, "vae_encoder", slot(args))
        with turn(self.artifacts):
            self.stage = VaeEncoderStage(self.artifacts, begin(), metrics)

    def execute(self, requests):
        return answer(pb_utils, requests, in_turn(self.artifacts, self.stage.handle), "vae_encoder")
