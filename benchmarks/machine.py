"""Where and with what a measurement was made."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_PACKAGES = ("confluent-kafka", "faust-streaming", "fastapi", "numpy", "torch", "uvicorn")


@dataclass(frozen=True, slots=True)
class Machine:
    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    versions: dict[str, str]
    commit: str
    #: Day of the measurement, UTC, ISO 8601.
    date: str
    #: Load average of the last minute before it began: what else ran here.
    load_before: float


def describe(packages: Sequence[str] = _PACKAGES) -> Machine:
    return Machine(
        cpu=_cpu(),
        cores=os.cpu_count() or 0,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions={name: version for name in packages if (version := _version(name))},
        commit=_commit(),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        load_before=round(os.getloadavg()[0], 2),
    )


def pace_ms(seconds: float = 0.5) -> float:
    """Wall time of a fixed piece of work (a million additions) now, mean over `seconds`: what else runs here."""
    began_s, done = time.perf_counter(), 0
    while (elapsed_s := time.perf_counter() - began_s) < seconds or not done:
        sum(range(1_000_000))
        done += 1
    return elapsed_s * 1000 / done


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """The commit that was measured, with a + where files differ from it; empty outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True)
    except OSError:
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
