"""The device of a stage that may run on a GPU, and its memory."""

import contextlib

import torch


class NotFinite(Exception):
    """The arithmetic broke down: a sick device, or a number type that the weights overflow. No request is to blame."""


def on_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Makes `device` the current one, where TensorRT and kernels that know no tensors' device launch; nothing on a CPU.

    For the span of a call: the current device belongs to a thread, and Triton chooses the thread.
    """
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def leave_room(manifest: dict, stage: str, device: torch.device) -> None:
    """Keep PyTorch in this process from taking memory that other stages on the same GPU were promised.

    The export checked that all of them fit together; a stage that grew beyond its share would break the others.
    """
    if device.type != "cuda" or "placement" not in manifest:
        return
    index = device.index or 0
    others, parallel = 0, manifest.get("parallel")
    for name, indices in manifest["placement"].items():
        if index in indices:
            together = name == "denoise" and parallel  # then each GPU has one rank
            on_each = 1 if together else manifest["instances"][name] // len(indices)
            others += (on_each - (name == stage)) * manifest["memory"][name]["total"]
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(max(total - others, 0) / total, device)


def name(device: torch.device) -> str:
    """The kind of device: on another kind the same request may give other bits."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


def is_lost() -> bool:
    """Whether CUDA answers every call of this process with an error from now on: such errors last as long as the process.

    Asked of the device, because exceptions and texts differ between PyTorch, TensorRT and kernels.
    """
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def gpu_uuid() -> str | None:
    """`GPU-…` of the current device, as nvidia-smi and DCGM name it; None without one."""
    if not torch.cuda.is_initialized():
        return None
    try:
        uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    except (RuntimeError, AttributeError):
        return None
    return uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
