"""What users ask for and what it costs: the job classes of a simulated trace."""

from loadtest.base.inputs import ProfileError
from loadtest.fleet.trace import JobClass

# GPU-seconds on one H200, as published: Wan2.1-14B 480p x 81 frames, 4 steps distilled 14 s (LightX2V); the same with 40
# steps and TeaCache 107 s, without 191 s; 720p with 40 steps and TeaCache 344 s.
DEFAULT_MIX = "480p-4-steps:0.30:14,480p-cached:0.45:107,480p:0.15:191,720p-cached:0.10:344"


def parse_mix(text: str) -> list[JobClass]:
    """Read NAME:SHARE:GPU_SECONDS,…; raises ProfileError naming the entry."""
    mix = []
    for entry in text.split(","):
        try:
            name, share, cost = entry.split(":")
            kind = JobClass(name, float(share), float(cost))
        except ValueError:
            raise ProfileError(f"mix entry is {entry!r}; allowed: NAME:SHARE:GPU_SECONDS") from None
        if not (kind.share > 0 and 0 < kind.gpu_seconds < 1e6):
            raise ProfileError(f"mix entry is {entry!r}; allowed: a share above 0 and 0 to 1,000,000 GPU-seconds")
        mix.append(kind)
    return mix
