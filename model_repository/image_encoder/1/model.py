"""SIZE and pictures or a clip to IMAGE_TOKENS."""

import triton_python_backend_utils as pb_utils

from stages.artifacts import Artifacts
from stages.beginning import begin
from stages.image_encoder_stage import ImageEncoderStage
from stages.metrics import StageMetrics, slot
from stages.responses import answer


class TritonPythonModel:
    def initialize(self, args):
        metrics = StageMetrics(pb_utils, "image_encoder", slot(args))
        self.stage = ImageEncoderStage(Artifacts.open(args), begin(), metrics)

    def execute(self, requests):
        return answer(pb_utils, requests, self.stage.handle, "image_encoder")
