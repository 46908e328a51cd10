"""Run as a program of its own: a picture from standard input to a PNG without metadata; prints its size, or what is wrong.

`read_picture.py TARGET MOST_PIXELS LONGEST_SIDE`. The orientation of a camera is applied, transparency becomes white, colour
profiles and CMYK become sRGB, 16 bits become 8. Imports nothing of this project: it starts with every picture.
"""

import io
import json
import sys

from PIL import Image, ImageCms, ImageOps

FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "MPO": "image/jpeg", "WEBP": "image/webp"}
SHORTEST_SIDE, STEEPEST = 16, 8
ALLOWED = "a PNG, JPEG or WebP picture"


class Refused(Exception):
    """`value` is what the file is, `allowed` what it may be."""

    def __init__(self, value: str, allowed: str):
        self.answer = {"value": value, "allowed": allowed}


def read(most_pixels: int, longest_side: int) -> Image.Image:
    """The picture, upright, in 8-bit RGB and no larger than what any video needs."""
    Image.MAX_IMAGE_PIXELS = None  # looked at here, with words of our own
    try:
        image = Image.open(sys.stdin.buffer, formats=("PNG", "JPEG", "WEBP"))
    except Exception:
        raise Refused("a file of another kind, or a broken one", ALLOWED) from None
    check(*image.size, most_pixels)
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # MPO: what a phone adds to its photo
        raise Refused("an animation", f"{ALLOWED} that does not move")
    image.draft("RGB", (longest_side, longest_side))
    try:
        image.load()
        return upright(image, longest_side)
    except MemoryError:
        raise Refused("a picture that takes too much memory", "a smaller one") from None
    except Exception as error:
        raise Refused(f"a broken or incomplete file ({str(error)[:80]})", f"{ALLOWED}, complete") from None


def check(width: int, height: int, most_pixels: int) -> None:
    """Before anything is decoded."""
    short, long = sorted((width, height))
    if width * height > most_pixels:
        raise Refused(f"{width}x{height} pixels", f"at most {most_pixels} pixels")
    if short < SHORTEST_SIDE or long > STEEPEST * short:
        allowed = f"sides of at least {SHORTEST_SIDE} pixels, the long one at most {STEEPEST} times the short one"
        raise Refused(f"{width}x{height} pixels", allowed)


def upright(image: Image.Image, longest_side: int) -> Image.Image:
    """Small before anything else: each further step makes a copy."""
    image = in_8_bits(image)
    if max(image.size) > longest_side:
        image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    image = in_srgb(ImageOps.exif_transpose(image))
    image.info = {}  # where and when a photo was taken is nobody's business
    return image


def in_8_bits(image: Image.Image) -> Image.Image:
    """Of modes that can be resized."""
    if image.mode.startswith("I") or image.mode == "F":
        import numpy as np  # the only format that needs it is rare

        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("P", "PA", "1"):
        return image.convert("RGBA")
    return image


def in_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    if profile and image.mode in ("RGB", "CMYK", "L"):
        try:
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
            return converted or image.convert("RGB")
        except (ImageCms.PyCMSError, ValueError, OSError):
            pass  # a profile that does not fit its picture: the plain conversion
    return image.convert("RGB")


def main() -> None:
    target, most_pixels, longest_side = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    try:
        image = read(most_pixels, longest_side)
        image.save(target, "PNG", compress_level=1)
        answer: dict = {"width": image.width, "height": image.height}
    except Refused as refusal:
        answer = refusal.answer
    except MemoryError:
        answer = {"value": "a picture that takes too much memory", "allowed": "a smaller one"}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
