"""The ffmpeg that imageio-ffmpeg brings, as one function."""

import contextlib
import subprocess
import tempfile

import imageio_ffmpeg


def run(arguments: list[str], data=None) -> bytes:
    """What ffmpeg writes to its standard output; `data` goes to its input. OSError with its own words when it fails."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments]
    # Not imageio-ffmpeg's own writer: it does not look at ffmpeg's status, so a full disk would leave half a video.
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as output:
        source = subprocess.DEVNULL if data is None else subprocess.PIPE
        process = subprocess.Popen(command, stdin=source, stdout=output, stderr=said)
        with contextlib.suppress(BrokenPipeError), process:  # a broken pipe: ffmpeg says why
            if process.stdin is not None:
                with process.stdin:
                    process.stdin.write(data)
        said.seek(0)
        if process.returncode != 0:
            words = said.read().decode(errors="replace").strip().splitlines()
            raise OSError(f"ffmpeg ended with status {process.returncode}: {'; '.join(words[-3:])[:300]}")
        output.seek(0)
        return output.read()
