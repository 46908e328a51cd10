"""PROMPT, NEGATIVE_PROMPT and the parameters to a validated REQUEST and token ids."""

import triton_python_backend_utils as pb_utils

from stages.artifacts import Artifacts
from stages.beginning import begin
from stages.responses import answer
from stages.tokenizer_stage import TokenizerStage


class TritonPythonModel:
    def initialize(self, args):
        self.stage = TokenizerStage(Artifacts.open(args), begin())

    def execute(self, requests):
        return answer(pb_utils, requests, self.stage.handle, "tokenizer")
