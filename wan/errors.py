"""Errors of the model package.

WanError
├── InvalidRequest(field, value, allowed)   the caller must change a parameter
├── CheckpointError                         the operator must fix the files
│   └── UnsupportedCheckpoint               valid files of a variant that is not served
└── Cancelled                               the caller stopped the denoise loop
"""


class WanError(Exception):
    """Root of every error that this package raises on purpose."""


class InvalidRequest(WanError):
    """A request parameter is outside its bounds; names the field, its value and what is allowed."""

    def __init__(self, field: str, value, allowed: str):
        self.field, self.value, self.allowed = field, value, allowed
        shown = repr(value)
        if len(shown) > 80:
            shown = f"{shown[:60]}… ({len(shown)} characters)"
        super().__init__(f"{field} is {shown}; allowed: {allowed}")


class CheckpointError(WanError):
    """The checkpoint's files are missing, incomplete or contradict each other."""


class UnsupportedCheckpoint(CheckpointError):
    """The checkpoint is a Wan variant that this package does not run."""


class Cancelled(WanError):
    """Raised out of the denoise loop when its `on_step` callback asked to stop."""
