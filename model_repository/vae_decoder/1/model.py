"""LATENTS to FRAMES, streaming."""

import triton_python_backend_utils as pb_utils

from stages.artifacts import Artifacts
from stages.beginning import begin
from stages.metrics import StageMetrics, slot
from stages.responses import answer
from stages.vae_decoder_stage import VaeDecoderStage


class TritonPythonModel:
    def initialize(self, args):
        metrics = StageMetrics(pb_utils, "vae_decoder", slot(args))
        self.stage = VaeDecoderStage(Artifacts.open(args), begin(), metrics)

    def execute(self, requests):
        return answer(pb_utils, requests, self.stage.handle, "vae_decoder")
