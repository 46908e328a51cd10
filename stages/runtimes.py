"""What computes in each stage, opened from an export's artifacts: the one way in for stages and for measurements."""

from pathlib import Path

import torch

from stages.artifacts import ArtifactError, Artifacts
from stages.settings import StageSettings, threads
from stages.text_runtime import OnnxTextEncoder, TextRuntime
from stages.torch_runtime import TorchClip, TorchTextEncoder, TorchVae, TorchVaeEncoder
from stages.vae_runtime import ClipRuntime, OnnxClip, OnnxVae, VaeRuntime, VaeSteps
from wan import compile
from wan.checkpoint import Checkpoint
from wan.denoise import Denoiser
from wan.optimize import Options
from wan.pipeline import at_size, load_denoiser


def in_torch(artifacts: Artifacts) -> bool:
    """Whether text encoder, CLIP and VAE run in PyTorch, from the checkpoint that was exported."""
    return artifacts.manifest["target"] == "workstation"


def device_of(artifacts: Artifacts, settings: StageSettings) -> torch.device:
    """Where a stage that runs in PyTorch computes."""
    return torch.device(artifacts.device or settings.device)


def _source(artifacts: Artifacts) -> Checkpoint:
    """The checkpoint that was exported; raises ArtifactError if it is another one by now."""
    source = artifacts.manifest["source"]
    root = Path(source["path"])
    for name, entry in source["files"].items():
        if (root / name).is_file() and (root / name).stat().st_size != entry["bytes"]:
            raise ArtifactError(f"{root / name} has changed since the export; {artifacts.command}")
    if not root.is_dir():
        raise ArtifactError(f"{root} is gone, where text encoder and decoder are read; {artifacts.command}")
    return Checkpoint.open(root)


def _torch_device(artifacts: Artifacts, settings: StageSettings, count: int) -> torch.device:
    """`device_of`; where that is the CPU, PyTorch gets `count` threads."""
    device = device_of(artifacts, settings)
    if device.type == "cpu":
        torch.set_num_threads(threads(count))
    return device


def open_text_encoder(artifacts: Artifacts, settings: StageSettings) -> TextRuntime:
    """On a GPU with plans the encoder is Triton's own affair; `stages.cost` opens its plan here."""
    if in_torch(artifacts):
        device = _torch_device(artifacts, settings, settings.encoder_threads)
        return TorchTextEncoder(_source(artifacts), device, artifacts.manifest["stream_text_encoder"])
    if artifacts.device is None:
        return OnnxTextEncoder(artifacts.folder, threads(settings.encoder_threads))
    from stages.trt_runtime import open_trt_text_encoder

    return open_trt_text_encoder(artifacts)


def open_denoiser(artifacts: Artifacts, settings: StageSettings) -> Denoiser:
    """The experts as the settings say; compiled code is kept."""
    device = device_of(artifacts, settings)
    kept = settings.compile_dir or compile.KEPT
    options = Options(settings.linear, settings.attention, settings.compile, keep=kept, fuse=settings.fuse)
    options = at_size(options, artifacts.card, next(iter(settings.warm_sizes), None))
    if options.compiles(device):
        compile.keep_in(kept)
    checkpoint = Checkpoint.open(artifacts["checkpoint"])
    blocks = artifacts.manifest.get("blocks_on_device")
    return load_denoiser(checkpoint, artifacts.card.geometry, device, options=options, blocks_on_device=blocks)


def open_vae(artifacts: Artifacts, settings: StageSettings) -> VaeRuntime:
    """PyTorch, ONNX Runtime on a CPU, TensorRT where the instance sits on a GPU."""
    if in_torch(artifacts):
        return TorchVae(_source(artifacts), _torch_device(artifacts, settings, settings.decoder_threads))
    if artifacts.device is None:
        return OnnxVae(artifacts.folder, threads(settings.decoder_threads))
    from stages.trt_runtime import open_trt_vae

    return open_trt_vae(artifacts, settings.decoder_weights_on_gpu)


def open_vae_encoder(artifacts: Artifacts, settings: StageSettings) -> VaeSteps:
    """The other direction of `open_vae`, where pictures or clips are taken."""
    if in_torch(artifacts):
        return TorchVaeEncoder(_source(artifacts), _torch_device(artifacts, settings, settings.encoder_threads))
    if artifacts.device is None:
        return OnnxVae(artifacts.folder, threads(settings.encoder_threads))
    from stages.trt_encoders import open_trt_vae_encoder

    return open_trt_vae_encoder(artifacts)


def open_clip(artifacts: Artifacts, settings: StageSettings) -> ClipRuntime:
    """CLIP's tower, of a checkpoint whose DiT looks at pictures."""
    if in_torch(artifacts):
        return TorchClip(_source(artifacts), _torch_device(artifacts, settings, settings.encoder_threads))
    if artifacts.device is None:
        return OnnxClip(artifacts["model.onnx"], threads(settings.encoder_threads))
    from stages.trt_encoders import open_trt_clip

    return open_trt_clip(artifacts)
