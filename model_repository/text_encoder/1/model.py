"""IDS and MASK of one prompt to its CONTEXT."""

import triton_python_backend_utils as pb_utils

from stages.artifacts import Artifacts
from stages.beginning import begin
from stages.metrics import StageMetrics, slot
from stages.responses import answer
from stages.text_encoder_stage import TextEncoderStage
from stages.turns import in_turn, turn


class TritonPythonModel:
    def initialize(self, args):
        self.artifacts = Artifacts.open(args)
        metrics = StageMetrics(pb_utils, "text_encoder", slot(args))
        with turn(self.artifacts):
            self.stage = TextEncoderStage(self.artifacts, begin(), metrics)

    def execute(self, requests):
        return answer(pb_utils, requests, in_turn(self.artifacts, self.stage.handle), "text_encoder")
