"""GPUs as NVIDIA's library tells of them. The library is a fake one, in C, and says what a test wants."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "fake_nvml.c"
COMPILER = shutil.which("cc") or shutil.which("gcc")
GIB = 1024**3


def built_library(folder: Path) -> Path:
    """The folder, with a library in it that is loaded in place of NVIDIA's. Skips without a compiler."""
    if COMPILER is None:
        pytest.skip("no C compiler: the fake NVML cannot be built")
    target = folder / "libnvidia-ml.so.1"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-Wall", "-Werror", "-o", target, SOURCE], check=True)
    return folder


class FakeGpus:
    """What the library answers from now on."""

    def __init__(self, library: Path, folder: Path, count: int = 1) -> None:
        self._state = folder / "nvml.txt"
        self.environment = {**os.environ, "LD_LIBRARY_PATH": str(library), "FAKE_NVML": str(self._state)}
        self.environment.pop("CUDA_VISIBLE_DEVICES", None)
        self._values: dict[tuple[int, str], int] = {(-1, "count"): count}
        self.set(0, memory_total=80 * GIB, memory_used=20 * GIB)

    def set(self, device: int, **values: int) -> None:
        self._values |= {(device, key): value for key, value in values.items()}
        lines = [f"{number} {key} {value}\n" for (number, key), value in self._values.items()]
        whole = self._state.with_suffix(".new")
        whole.write_text("".join(lines))
        whole.replace(self._state)
