"""Why a stage broke, for programs: `[wan:CODE GPU-UUID] text` begins the message of a stage's error.

Triton carries only a status and a text, and puts words of its own before the text of a stage.
"""

import re

CHECKPOINT_REFUSED = "checkpoint_refused"  # the run cannot go on from this checkpoint
BETWEEN_STAGES = "between_stages"  # what another stage passed on is wrong
OUT_OF_MEMORY = "out_of_memory"
DEVICE_ERROR = "device_error"  # the GPU answers nothing any more in this process, which ends
NOT_FINITE = "not_finite"  # NaN or infinity
STAGE_BROKE = "stage_broke"  # anything else
CODES = (CHECKPOINT_REFUSED, BETWEEN_STAGES, OUT_OF_MEMORY, DEVICE_ERROR, NOT_FINITE, STAGE_BROKE)

_TAG = re.compile(r"\[wan:([a-z_]+)(?: (GPU-[0-9a-fA-F-]+))?\] ")


def tagged(code: str, text: str, gpu: str | None = None) -> str:
    """The message of an error."""
    return f"[wan:{code}{f' {gpu}' if gpu else ''}] {text}"


def untagged(message: str) -> tuple[str | None, str | None, str]:
    """(code, UUID of the GPU, the message without both); None for what the message does not say."""
    found = _TAG.search(message)
    if found is None or found[1] not in CODES:
        return None, None, message
    return found[1], found[2], message[: found.start()] + message[found.end() :]
