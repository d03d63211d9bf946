"""GPUs as NVIDIA's library tells of them: healthy, slowed down, failing, lost. The library is a fake one, in C."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_consumers.device_health import SILENT_LOOKS, DeviceHealth
from gpu_consumers.device_monitor import DeviceMonitor, MemoryMeter
from gpu_consumers.devices import best_device
from gpu_consumers.nvml import NvmlError, Reading, throttle_reasons
from runtime.errors import EXIT_DEVICE, DeviceFault
from runtime.metrics import Metrics
from runtime.settings import Settings
from schemas.topics import RESULTS, WORKERS
from tests.unit.gpu_case import GIB, FakeGpus, built_library
from tests.unit.worker_case import ACCEPTED, GROUP, Running

#: Polls a monitor of one device whenever a line comes in, and says what it found as JSON.
_WATCH = """
import json, sys
from gpu_consumers.device_monitor import DeviceMonitor
from gpu_consumers.nvml import Library, NvmlError
from runtime.errors import DeviceFault
from runtime.metrics import Metrics
from schemas.messages import WorkerHeartbeat
library = Library()
uuid = library.uuids()[0]
device = library.device(uuid)
metrics = Metrics()
monitor = DeviceMonitor(device, labels=("w", "fake:0"), uuid=uuid, metrics=metrics)
print(json.dumps({"uuids": library.uuids(), "name": device.name}), flush=True)
for _ in sys.stdin:
    beat, fault, status = WorkerHeartbeat(), "", 0
    try:
        monitor.poll()
    except DeviceFault as error:
        fault, status = str(error), error.exit_status
    monitor.fill(beat)
    latest = monitor.latest
    print(json.dumps({
        "fault": fault, "status": status,
        "reading": None if latest is None else {name: getattr(latest, name) for name in latest.__slots__},
        "beat": {"used": beat.gpu_memory_used_bytes, "power": beat.gpu_power_watts, "uuid": beat.gpu_uuid},
        "metrics": metrics.exposition().decode(),
    }), flush=True)
"""


@pytest.fixture(scope="module")
def library_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_library(tmp_path_factory.mktemp("nvml"))


class Watch:
    """A monitor in a process of its own, since a process loads the library once."""

    def __init__(self, gpus: FakeGpus) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WATCH],
            env=gpus.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.first = self._read()

    def look(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the monitor's process has ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


@pytest.fixture
def gpus(library_folder: Path, tmp_path: Path) -> FakeGpus:
    return FakeGpus(library_folder, tmp_path)


@contextmanager
def watching(gpus: FakeGpus) -> Iterator[Watch]:
    watch = Watch(gpus)
    try:
        yield watch
    finally:
        watch.close()


def test_a_healthy_device_is_told_of_under_the_checklists_names_and_throttling_comes_and_goes(gpus: FakeGpus) -> None:
    gpus.set(0, utilization=87, temperature=71, power_mw=412_500, throttle=0x1, ecc=3)
    with watching(gpus) as watch:
        assert watch.first == {"uuids": ["GPU-fake-0"], "name": "Fake H100"}
        found = watch.look()
        gpus.set(0, throttle=0x1 | 0x4 | 0x40 | 0x10000)
        slow = watch.look()
        gpus.set(0, throttle=0)
        fast = watch.look()
    assert found["fault"] == ""
    assert found["reading"] == {
        "utilization_percent": 87.0,
        "memory_used_bytes": 20 * GIB,
        "memory_total_bytes": 80 * GIB,
        "temperature_celsius": 71.0,
        "power_watts": 412.5,
        "throttle_reasons": [],
        "uncorrected_errors": 3,
    }
    assert found["beat"] == {"used": 20 * GIB, "power": 412.5, "uuid": "GPU-fake-0"}
    labels = '{device="fake:0",worker="w"}'
    for line in (
        f"vla_gpu_utilization_percent{labels} 87.0",
        f"vla_gpu_memory_utilization_percent{labels} 25.0",
        f"vla_gpu_memory_used_bytes{labels} {20 * GIB:.11e}",
        f"vla_gpu_temperature_celsius{labels} 71.0",
        f"vla_gpu_power_watts{labels} 412.5",
    ):
        name, _, value = line.rpartition(" ")
        (written,) = [one for one in found["metrics"].splitlines() if one.startswith(f"{name} ")]
        assert float(written.rpartition(" ")[2]) == float(value)
    assert slow["fault"] == ""
    assert slow["reading"]["throttle_reasons"] == ["power_cap", "hw_thermal", "unknown"]
    assert 'vla_gpu_throttled{device="fake:0",reason="hw_thermal",worker="w"} 1.0' in slow["metrics"]
    assert 'vla_gpu_throttled{device="fake:0",reason="hw_thermal",worker="w"} 0.0' in fast["metrics"]


def test_what_a_device_does_not_tell_is_missing_and_no_fault(gpus: FakeGpus) -> None:
    with watching(gpus) as watch:
        found = watch.look()
    assert found["fault"] == ""
    for figure in ("utilization_percent", "power_watts", "uncorrected_errors"):
        assert found["reading"][figure] is None, "as a GPU that is cut into MIG instances"
    assert "vla_gpu_utilization_percent{" not in found["metrics"]


def test_a_device_that_tells_nothing_at_all_serves_without_being_watched(gpus: FakeGpus) -> None:
    gpus.set(0, memory_total=-1)
    with watching(gpus) as watch:
        looks = [watch.look() for _ in range(SILENT_LOOKS + 1)]
    assert [look["fault"] for look in looks] == [""] * (SILENT_LOOKS + 1)
    assert looks[-1]["reading"] is None


def test_a_device_that_is_lost_mid_run_leaves_at_once_and_a_passing_failure_does_not(gpus: FakeGpus) -> None:
    with watching(gpus) as watch:
        assert watch.look()["fault"] == ""
        gpus.set(0, error=999)
        assert [watch.look()["fault"] for _ in range(SILENT_LOOKS - 1)] == [""] * (SILENT_LOOKS - 1)
        gpus.set(0, error=0)
        assert watch.look()["fault"] == ""
        gpus.set(0, error=999)
        faults = [watch.look()["fault"] for _ in range(SILENT_LOOKS)]
        assert faults[:-1] == [""] * (SILENT_LOOKS - 1)
        assert f"{SILENT_LOOKS} times in a row" in faults[-1]
        gpus.set(0, error=0)
        assert watch.look()["fault"] == ""
        gpus.set(0, error=15)
        lost = watch.look()
    assert "lost" in lost["fault"]
    assert (lost["status"], lost["reading"]) == (EXIT_DEVICE, None)
    assert 'vla_gpu_faults_total{device="fake:0",worker="w"} 2.0' in lost["metrics"]


def test_new_memory_errors_and_xids_of_the_device_are_its_end_and_those_of_programs_are_not(gpus: FakeGpus) -> None:
    gpus.set(0, ecc=7)
    with watching(gpus) as watch:
        assert watch.look()["fault"] == "", "errors of before are not ours"
        gpus.set(0, xid=31, xid_number=1)
        assert watch.look()["fault"] == "", "a page fault of a program"
        gpus.set(0, ecc=9)
        assert "2 uncorrected memory errors" in watch.look()["fault"]
        assert watch.look()["fault"] == ""
        gpus.set(0, xid=79, xid_number=2)
        assert "Xid 79" in watch.look()["fault"]


def test_a_host_without_the_library_says_so() -> None:
    code = (
        "from gpu_consumers.nvml import Library, NvmlError\ntry:\n Library()\nexcept NvmlError as e:\n print('none', e)"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": "/nonexistent"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    if not said.stdout:
        pytest.skip("this host has an NVIDIA driver")
    assert "none NVML" in said.stdout


@given(st.integers(0, 2**20))
def test_every_reason_that_slows_a_device_down_is_named_and_idleness_is_none(bits: int) -> None:
    assert bool(throttle_reasons(bits)) == bool(bits & ~1)


class Cuda:
    """Of torch.cuda, what a memory meter asks."""

    def __init__(self, allocated: int, peak: int) -> None:
        self._allocated, self._peak = allocated, peak

    def reset_peak_memory_stats(self, device: str) -> None: ...

    def memory_allocated(self, device: str) -> int:
        return self._allocated

    def max_memory_allocated(self, device: str) -> int:
        return self._peak


def test_memory_per_inference_is_what_a_batch_took_beyond_the_weights() -> None:
    meter = MemoryMeter("cuda:0", Cuda(allocated=1000, peak=1800))
    meter.begin()
    meter.end(4)
    assert meter.per_inference_bytes == 200
    none = MemoryMeter("cpu")
    none.begin()
    none.end(4)
    assert none.per_inference_bytes == 0


def test_a_worker_whose_gpu_cannot_be_used_does_not_fall_back_on_the_cpu_where_one_is_required() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this host has a GPU")
    assert best_device(Settings(_env_file=None)) == "cpu"
    with pytest.raises(DeviceFault):
        best_device(Settings(_env_file=None, require_gpu=True))


class Dying:
    """A device that answers until it is lost."""

    def __init__(self) -> None:
        self.lost = threading.Event()

    def read(self) -> Reading:
        if self.lost.is_set():
            raise NvmlError("GPU is lost", lost=True)
        return Reading(utilization_percent=1, memory_used_bytes=1, memory_total_bytes=2, temperature_celsius=3)

    def critical_events(self) -> list[int]:
        return []


def test_a_worker_whose_device_is_lost_ends_with_its_status_and_leaves_its_requests_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device_port = Dying()

    def open_monitor(settings: Settings, device: str, worker_id: str, metrics: Metrics) -> DeviceMonitor:
        return DeviceMonitor(device_port, labels=(worker_id, device), uuid="GPU-1", metrics=metrics)

    monkeypatch.setattr("gpu_consumers.pipeline.open_monitor", open_monitor)
    run = Running(gpu_poll_interval=0.2)
    run.policy.open.clear()
    run.start()
    run.send("in-flight")
    assert run.policy.busy.wait(10)
    assert run.broker.wait_for(lambda: bool(run.broker.records(WORKERS)))
    device_port.lost.set()
    assert run.lifecycle.stopping.wait(10), "the lost device did not end the worker"
    run.thread.join()
    run.policy.open.set()
    assert run.lifecycle.close() == EXIT_DEVICE
    # What the device still brought may count; else the next worker reads the request again.
    committed = run.broker.committed(GROUP, ACCEPTED, 0) or 0
    assert committed <= len(run.broker.records(RESULTS))
    assert run.broker.records(WORKERS)[-1].value is None, "it said that it leaves"


def test_health_is_pure() -> None:
    health = DeviceHealth()
    assert "lost" in health.silence(NvmlError("gone", lost=True))
