"""What a request is, said once: parameters, geometry, variants, defaults and price.

Every other room derives from it: the API model and the page's form, Triton's inputs and `config.pbtxt`, the arguments of
the pipeline and of the command line, the load profiles, the documents' table, the fingerprint of a resumable run. It
imports neither torch nor a web framework, so that the gateway's image stays small.
"""

from contract.card import ModelCard
from contract.errors import InvalidRequest, WanError
from contract.geometry import Geometry
from contract.parameters import PARAMETERS, Defaults, GenerationRequest, Parameter

__all__ = [
    "PARAMETERS", "Defaults", "GenerationRequest", "Geometry", "InvalidRequest", "ModelCard", "Parameter", "WanError",
]  # fmt: skip
