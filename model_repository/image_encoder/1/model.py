"""SIZE and pictures or a clip to IMAGE_TOKENS."""

import triton_python_backend_utils as pb_utils

from stages.artifacts import Artifacts
from stages.image_encoder_stage import ImageEncoderStage
from stages.metrics import StageMetrics, slot
from stages.orphan import end_with_server
from stages.responses import answer
from stages.settings import load_settings


class TritonPythonModel:
    def initialize(self, args):
        end_with_server()
        metrics = StageMetrics(pb_utils, "image_encoder", slot(args))
        self.stage = ImageEncoderStage(Artifacts.open(args), load_settings(), metrics)

    def execute(self, requests):
        return answer(pb_utils, requests, self.stage.handle)
