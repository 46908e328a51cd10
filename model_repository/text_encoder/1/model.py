"""IDS and MASK of one prompt to its CONTEXT."""

import triton_python_backend_utils as pb_utils

from stages.artifacts import Artifacts
from stages.beginning import begin
from stages.metrics import StageMetrics, slot
from stages.responses import answer
from stages.text_encoder_stage import TextEncoderStage


class TritonPythonModel:
    def initialize(self, args):
        metrics = StageMetrics(pb_utils, "text_encoder", slot(args))
        self.stage = TextEncoderStage(Artifacts.open(args), begin(), metrics)

    def execute(self, requests):
        return answer(pb_utils, requests, self.stage.handle, "text_encoder")
