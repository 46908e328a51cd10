"""PROMPT, NEGATIVE_PROMPT and the parameters to a validated REQUEST and token ids."""

import triton_python_backend_utils as pb_utils

from stages.artifacts import Artifacts
from stages.orphan import end_with_server
from stages.responses import answer
from stages.settings import load_settings
from stages.tokenizer_stage import TokenizerStage


class TritonPythonModel:
    def initialize(self, args):
        end_with_server()
        self.stage = TokenizerStage(Artifacts.open(args), load_settings())

    def execute(self, requests):
        return answer(pb_utils, requests, self.stage.handle)
