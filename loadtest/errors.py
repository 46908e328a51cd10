"""Errors of the load-test package.

LoadTestError
├── ProfileError        the profile, forecast or result file must be changed
├── TargetRefused       the address is not loopback and --allow-remote was not given
├── TargetUnavailable   the service does not answer: start it or correct the address
└── ToolError           an external program (perf_analyzer, the service itself) is missing or failed
"""


class LoadTestError(Exception):
    """Root of every error that this package raises on purpose."""


class ProfileError(LoadTestError):
    """An input file is unreadable or a field in it is wrong; the message names file, field and what is allowed."""


class TargetRefused(LoadTestError):
    """The target is not on this machine and the caller did not allow that explicitly."""


class TargetUnavailable(LoadTestError):
    """The target does not answer before the first request is sent."""


class ToolError(LoadTestError):
    """An external program could not be fetched, started or understood."""
