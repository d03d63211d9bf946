"""`gpu --all`: a worker for each device, started again and drained. Devices and workers are fake ones."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_consumers.device_group import RESTART, SICK, back_off_of, plan_workers
from runtime.children import BackOff
from runtime.errors import EXIT_DEVICE
from tests.unit.gpu_case import FakeGpus, built_library

#: Stands for a worker: notes how it was started, obeys a file once, drains on SIGTERM.
_WORKER = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
names = ("CUDA_VISIBLE_DEVICES", "GPU_DEVICE", "ROLE_INSTANCE", "METRICS_PORT", "REQUIRE_GPU")
me = {name: os.environ.get(name) for name in names}
def leave(*_):
    (folder / f"drained-{me['ROLE_INSTANCE']}").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
with (folder / f"starts-{me['ROLE_INSTANCE']}").open("a") as file:
    file.write(json.dumps(me) + chr(10))
order = folder / f"exit-{me['ROLE_INSTANCE']}"
while not order.exists():
    time.sleep(0.02)
status = int(order.read_text())
order.unlink()
sys.exit(status)
"""
_GROUP = """
import sys
from gpu_consumers.device_group import main
from runtime.logs import configure_logging
from runtime.settings import Settings
configure_logging(level="INFO", log_format="text", role="gpu", instance=0)
sys.exit(main(Settings(_env_file=None), argv=(sys.executable, "-c", sys.argv[1], sys.argv[2])))
"""


@pytest.fixture(scope="module")
def library_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_library(tmp_path_factory.mktemp("nvml"))


class Group:
    """`gpu --all` with a program in place of its workers."""

    def __init__(self, gpus: FakeGpus, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.log = folder / "group.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _GROUP, _WORKER, str(folder)],
                env={**gpus.environment, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def starts(self, worker: int) -> list[dict[str, str]]:
        file = self.folder / f"starts-{worker}"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def order(self, worker: int, status: int) -> None:
        """Have a worker end with that status; the order is there whole or not at all."""
        unfinished = self.folder / "order"
        unfinished.write_text(str(status))
        unfinished.replace(self.folder / f"exit-{worker}")

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)


@contextmanager
def group(gpus: FakeGpus, folder: Path, **environment: str) -> Iterator[Group]:
    running = Group(gpus, folder, **environment)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def test_each_device_gets_a_worker_of_its_own_that_is_started_again_and_drained(
    library_folder: Path, tmp_path: Path
) -> None:
    gpus = FakeGpus(library_folder, tmp_path, count=3)
    gpus.set(1, error=15)
    with group(gpus, tmp_path) as running:
        running.until(lambda: bool(running.starts(0) and running.starts(1)))
        assert [running.starts(n)[0]["CUDA_VISIBLE_DEVICES"] for n in (0, 1)] == ["GPU-fake-0", "GPU-fake-2"]
        assert {running.starts(n)[0]["GPU_DEVICE"] for n in (0, 1)} == {"0"}
        assert {running.starts(n)[0]["REQUIRE_GPU"] for n in (0, 1)} == {"true"}
        running.order(1, EXIT_DEVICE)
        running.until(lambda: "its device is sick" in running.log.read_text())
        running.order(0, 70)
        running.until(lambda: "(status 70)" in running.log.read_text())
        running.until(lambda: len(running.starts(0)) == 2)
        assert len(running.starts(1)) == 1, "a sick device waits much longer than a worker that failed"
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 0
        assert (tmp_path / "drained-0").exists()


def test_a_host_without_a_gpu_runs_workers_on_the_cpu_and_says_so(library_folder: Path, tmp_path: Path) -> None:
    gpus = FakeGpus(library_folder, tmp_path, count=0)
    with group(gpus, tmp_path, INFERENCE_MAX_WORKERS="2") as running:
        running.until(lambda: bool(running.starts(0) and running.starts(1)))
        assert "no GPU on this host (NVML shows none): 2 CPU workers" in running.log.read_text()
        assert running.starts(0)[0]["CUDA_VISIBLE_DEVICES"] is None
        assert running.starts(0)[0]["METRICS_PORT"] != running.starts(1)[0]["METRICS_PORT"]
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 0
        assert {file.name for file in tmp_path.glob("drained-*")} == {"drained-0", "drained-1"}


@pytest.mark.parametrize(
    ("uuids", "visible", "most", "devices", "cpu_workers"),
    [
        (["a", "b"], None, 0, ("a", "b"), 0),
        (["a", "b"], None, 1, ("a",), 0),
        (["a", "b"], None, 9, ("a", "b"), 0),
        (["a", "b", "c"], "2, 0", 0, ("2", "0"), 0),
        (["a", "b"], "0,-1,1", 0, ("0",), 0),
        (["a", "b"], "7", 0, (), 1),
        (["a"], "GPU-x,MIG-y", 0, ("GPU-x", "MIG-y"), 0),
        (["a"], "", 0, (), 1),
        ([], "0", 0, (), 1),
        ([], None, 3, (), 3),
    ],
)
def test_who_gets_a_worker(
    uuids: list[str], visible: str | None, most: int, devices: tuple[str, ...], cpu_workers: int
) -> None:
    plan = plan_workers(uuids, visible, most)
    assert (plan.devices, plan.cpu_workers) == (devices, cpu_workers)
    assert ("no GPU" in plan.reason) == (not devices)


@given(st.lists(st.floats(0, 100), min_size=1))
def test_pauses_grow_to_a_limit_and_begin_anew_after_a_long_life(lives_s: list[float]) -> None:
    rule = BackOff(first_s=1, longest_s=20, stable_after_s=50)
    delay_s: float | None = None
    for lived_s in lives_s:
        before, delay_s = delay_s, rule.delay_s(delay_s, lived_s)
        assert delay_s == (1 if before is None or lived_s >= 50 else min(before * 2, 20))
    assert (back_off_of(EXIT_DEVICE), back_off_of(70), back_off_of(-9)) == (SICK, RESTART, RESTART)
