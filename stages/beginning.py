"""What the process of every stage does first."""

from contract import traces
from stages.orphan import end_with_server
from stages.settings import StageSettings, load_settings


def begin() -> StageSettings:
    """Its settings; from now on it ends with its server, and traces where they say so."""
    end_with_server()
    settings = load_settings()
    traces.begin(settings.otlp_endpoint, "wan-triton")
    return settings
