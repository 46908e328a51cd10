"""What serving costs: the Triton ensemble over gRPC against `wan.Pipeline` in this process, the same requests.

    python -m loadtest overhead --checkpoint models/tiny --repository build/repository

Each pair of runs has a prompt of its own, so the response cache helps with nothing but the negative prompt; which side
goes first alternates. With `--image FILE` each pair begins with that picture, one of its pixels being the pair's own. Exit code 0: the median difference is within the limit, 1: it is not.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from PIL import Image

from contract.media import BY_NAME
from service.launcher.server import TritonServer
from wan.pipeline import Pipeline

LIMIT_SHARE, LIMIT_SECONDS = 0.05, 0.05
PROMPT = "take {}: a red circle moves left on a black background"


@dataclass(frozen=True)
class Pair:
    """Seconds of the same request in process and over gRPC; `stages` is what the stages themselves took of the latter."""

    pipeline: float
    ensemble: float
    stages: float


def picture(file: Path, number: int) -> dict[str, Any]:
    """What a pair is given: the picture with a pixel that no other pair has."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    image.putpixel((0, 0), (number % 256, number // 256 % 256, 0))
    return {"image": image}


def encoded(image: Image.Image) -> bytes:
    target = io.BytesIO()
    image.save(target, "PNG")
    return target.getvalue()


def call(
    client: grpcclient.InferenceServerClient, prompt: str, seed: int, media: dict[str, Image.Image] | None = None
) -> dict:
    """One request with the checkpoint's defaults; returns INFO."""
    inputs = [grpcclient.InferInput("PROMPT", [1], "BYTES"), grpcclient.InferInput("SEED", [1], "INT64")]
    inputs[0].set_data_from_numpy(np.array([prompt.encode()], np.object_))
    inputs[1].set_data_from_numpy(np.array([seed], np.int64))
    for name, image in (media or {}).items():
        inputs.append(grpcclient.InferInput(BY_NAME[name].tensor_name, [1], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array([encoded(image)], np.object_))
    answer = client.infer("wan", inputs)
    if answer.as_numpy("FRAMES").size == 0:
        raise RuntimeError("the ensemble returned no frames")
    return json.loads(answer.as_numpy("INFO")[0])


def measure(
    pipeline: Pipeline, client: grpcclient.InferenceServerClient, number: int, image: Path | None = None
) -> Pair:
    """Run both sides once; an even number runs the pipeline first."""
    media = picture(image, number) if image else {}
    seconds, stages = {}, 0.0
    for side in ("pipeline", "ensemble") if number % 2 == 0 else ("ensemble", "pipeline"):
        began = time.perf_counter()
        if side == "pipeline":
            pipeline(PROMPT.format(number), seed=number, **media)
        else:
            stages = sum(call(client, PROMPT.format(number), number, media)["seconds"].values())
        seconds[side] = time.perf_counter() - began
    return Pair(seconds["pipeline"], seconds["ensemble"], stages)


def verdict(pairs: list[Pair]) -> tuple[bool, str]:
    """Whether the median overhead is within 5 % + 50 ms, and the report."""
    pipeline, ensemble = (statistics.median(getattr(pair, side) for pair in pairs) for side in ("pipeline", "ensemble"))
    difference = statistics.median(pair.ensemble - pair.pipeline for pair in pairs)
    transport = statistics.median(pair.ensemble - pair.stages for pair in pairs)
    limit = LIMIT_SHARE * pipeline + LIMIT_SECONDS
    met = difference <= limit
    lines = [
        f"pairs                      {len(pairs)}",
        f"wan.Pipeline in process    {pipeline * 1e3:8.1f} ms (median)",
        f"ensemble over gRPC         {ensemble * 1e3:8.1f} ms (median)",
        f"  of it outside the stages {transport * 1e3:8.1f} ms",
        f"difference                 {difference * 1e3:8.1f} ms (median of pairs), limit {limit * 1e3:.1f} ms (5 % + 50 ms)",
        f"verdict                    {'met' if met else 'NOT met'}",
    ]
    return met, "\n".join(lines)


def run(checkpoint: Path, repository: Path, count: int, image: Path | None = None) -> tuple[bool, str]:
    """Start a server of its own and measure `count` pairs after one that warms both sides up."""
    pipeline = Pipeline.from_checkpoint(checkpoint)
    with (
        tempfile.TemporaryDirectory() as folder,
        TritonServer(repository, log_path=Path(folder) / "triton.log") as server,
        grpcclient.InferenceServerClient(server.grpc_url) as client,
    ):
        measure(pipeline, client, 0, image)
        return verdict([measure(pipeline, client, number, image) for number in range(1, count + 1)])


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, default=Path("models/tiny"))
    parser.add_argument("--repository", type=Path, default=Path("build/repository"))
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--image", type=Path, help="the picture that each video begins with, if the model takes one")


def handle(given: argparse.Namespace) -> int:
    met, report = run(given.checkpoint, given.repository, given.pairs, given.image)
    print(report)
    return 0 if met else 1
