"""REQUEST and CONTEXTs to LATENTS, with progress, cancel and checkpoints through the run directory."""

import triton_python_backend_utils as pb_utils

from stages.artifacts import Artifacts
from stages.denoise_stage import DenoiseStage
from stages.metrics import DenoiseMetrics, slot
from stages.orphan import end_with_server
from stages.responses import answer
from stages.settings import load_settings


class TritonPythonModel:
    def initialize(self, args):
        end_with_server()
        self.stage = DenoiseStage(Artifacts.open(args), load_settings(), DenoiseMetrics(pb_utils, slot(args)))

    def execute(self, requests):
        return answer(pb_utils, requests, self.stage.handle)

    def finalize(self):
        self.stage.close()
