"""Pictures and clips that a request may carry beside its parameters, once.

They travel as encoded files: in a form or a JSON body to the service, in storage while the job waits, as BYTES [1] to
Triton. Which of them a checkpoint takes, and which it needs, is said by its variant.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Medium:
    """One input of this kind. `aliases`: what other servers call it."""

    name: str
    kind: Literal["image", "video"]
    label: str
    help: str
    aliases: tuple[str, ...] = ()

    @property
    def tensor_name(self) -> str:
        return self.name.upper()


MEDIA = (
    Medium("image", "image", "First picture", "The frame that the video begins with.", ("input_reference", "first_image")),
    Medium("last_image", "image", "Last picture", "The frame that the video ends with.", ("end_image", "last_frame")),
    Medium("video", "video", "Clip", "The clip that is changed or continued.", ("input_video", "video_reference")),
)
BY_NAME = {medium.name: medium for medium in MEDIA}
