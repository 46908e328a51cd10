"""Errors of the model package.

WanError                                    of the contract, like the next one
├── InvalidRequest(field, value, allowed)   the caller must change a parameter
├── CheckpointError                         the operator must fix the files
│   └── UnsupportedCheckpoint               valid files of a variant that is not served
├── RankLost                                one of the processes that make a video together ended or hung
└── Cancelled                               the caller stopped the denoise loop
"""

from contract.errors import InvalidRequest, WanError

__all__ = ["Cancelled", "CheckpointError", "InvalidRequest", "RankLost", "UnsupportedCheckpoint", "WanError"]


class CheckpointError(WanError):
    """The checkpoint's files are missing, incomplete or contradict each other."""


class UnsupportedCheckpoint(CheckpointError):
    """The checkpoint is a Wan variant that this package does not run."""


class Cancelled(WanError):
    """Raised out of the denoise loop when its `on_step` callback asked to stop."""


class RankLost(WanError):
    """A rank of a video on several devices ended or hung; no request is to blame."""
