"""Which device a worker runs on, and what it does when its memory runs out."""

from __future__ import annotations

import sys

from runtime.errors import DeviceFault
from runtime.settings import Settings
from schemas.cards import ModelCard


def choose_device(settings: Settings, card: ModelCard) -> str:
    """The torch name of the device for a deployment. A policy without weights never makes this process load torch."""
    return best_device(settings) if card.weights else "cpu"


def best_device(settings: Settings) -> str:
    """The torch name of the GPU that the settings name, the CPU where there is none.

    Raises DeviceFault where there is none and one is required.
    """
    import torch

    torch.set_num_threads(settings.torch_threads)
    if torch.cuda.is_available() and settings.gpu_device < torch.cuda.device_count():
        return f"cuda:{settings.gpu_device}"
    if settings.require_gpu:
        raise DeviceFault(f"CUDA cannot use GPU {settings.gpu_device} of this process: see `nvidia-smi` on this host")
    return "cpu"


def device_name(device: str) -> str:
    """What the device calls itself; its torch name for a CPU."""
    if not device.startswith("cuda"):
        return device
    import torch

    return str(torch.cuda.get_device_name(device))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device (torch) or the machine ran out of memory. Asks by name, so that torch need not be there."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"OutOfMemoryError", "MemoryError"})


def release_memory() -> None:
    """Give cached blocks back to the device after it ran out of memory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
