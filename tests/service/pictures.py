"""Pictures and clips as people send them, good and bad."""

import base64
import io
import json
import subprocess
import tempfile
from pathlib import Path

import imageio_ffmpeg
from PIL import Image

from tests.service.running import CARD, settings_for


def settings_with_media(folder: Path, *takes: str, needs: tuple[str, ...] = (), **more):
    """Settings of a service whose model takes these media."""
    variant = {"variant": "i2v-2.2"} if "image" in takes else {}
    card = folder / "card.json"
    card.write_text(json.dumps(json.loads(CARD.read_text()) | variant | {"takes": takes, "needs": needs}))
    return settings_for(folder, model_card=card, **more)


def encoded(image: Image.Image, kind: str = "PNG", **more) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **more)
    return target.getvalue()


def picture(width: int = 64, height: int = 48, colour="red", kind: str = "PNG", mode: str = "RGB", **more) -> bytes:
    return encoded(Image.new(mode, (width, height), colour), kind, **more)


def noise(width: int = 64, height: int = 64, kind: str = "PNG") -> bytes:
    """A picture that compresses badly, so that half of it is half of its bytes."""
    return encoded(Image.effect_noise((width, height), 60).convert("RGB"), kind)


def animation(kind: str = "PNG") -> bytes:
    more = [Image.new("RGB", (64, 64), colour) for colour in ("green", "blue")]
    return encoded(Image.new("RGB", (64, 64), "red"), kind, save_all=True, append_images=more)


def clip(seconds: float = 1, size: str = "64x48", rate: int = 8, suffix: str = "mp4", *options: str) -> bytes:
    source = ["-f", "lavfi", "-i", f"testsrc=size={size}:rate={rate}:duration={seconds}"]
    return _ffmpeg(*source, *options, suffix=suffix)


def sound() -> bytes:
    return _ffmpeg("-f", "lavfi", "-i", "sine=duration=1", suffix="mp4")


def _ffmpeg(*arguments: str, suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"made.{suffix}"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments, str(target)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        return target.read_bytes()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
