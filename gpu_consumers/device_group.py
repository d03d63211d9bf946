"""Role `gpu --all`: one worker for each GPU of this host, each pinned to its own and started again when it ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gpu_consumers.nvml import Library, NvmlError
from runtime.children import BackOff, Children
from runtime.errors import EXIT_DEVICE
from runtime.lifecycle import Deadline, Lifecycle
from runtime.metrics import Metrics
from runtime.settings import Settings
from runtime.stack.component import Command
from runtime.stack.layout import LOOPBACK, free_port
from runtime.stack.roles import answers_ready, vlastream
from runtime.status_server import StatusServer

log = logging.getLogger(__name__)

#: A worker that ended for any other reason than its device; loading weights takes it a while anyway.
RESTART = BackOff(first_s=0.5, longest_s=30.0, stable_after_s=120.0)
#: A sick device: what heals at all (page retirement, a reset by an operator) takes minutes.
SICK = BackOff(first_s=10.0, longest_s=600.0, stable_after_s=1800.0)
_TICK_S = 0.1
#: What a worker gets beyond its own shutdown time before it is killed.
_STOP_MARGIN_S = 5.0
_ANYWHERE = {"0.0.0.0": LOOPBACK, "::": "::1"}


@dataclass(frozen=True, slots=True)
class Plan:
    """Which devices get a worker (CUDA's names for them; empty: this many on the CPU), and a sentence that says so."""

    devices: tuple[str, ...]
    cpu_workers: int
    reason: str


def plan_workers(uuids: Sequence[str], visible: str | None, most: int, why_none: str = "") -> Plan:
    """Pure. uuids: of the devices that answer. visible: CUDA_VISIBLE_DEVICES. most: 0 for no limit."""
    devices = list(uuids)
    if visible is not None and devices:
        # Handed on as they stand: what an index means depends on CUDA_DEVICE_ORDER, which the worker has too.
        devices = []
        for word in (part.strip() for part in visible.split(",")):
            if not word or word == "-1" or (word.isdigit() and int(word) >= len(uuids)):
                break  # CUDA, too, sees none of those behind an invalid one
            devices.append(word)
        why_none = "CUDA_VISIBLE_DEVICES names none that is there"
    if not devices:
        workers = max(most, 1)
        noun = "worker" if workers == 1 else "workers"
        return Plan((), workers, f"no GPU on this host ({why_none or 'NVML shows none'}): {workers} CPU {noun}")
    chosen = devices[:most] if most else devices
    return Plan(tuple(chosen), 0, f"{len(chosen)} of {len(uuids)} GPUs of this host get a worker")


def back_off_of(status: int) -> BackOff:
    return SICK if status == EXIT_DEVICE else RESTART


def main(settings: Settings, argv: Sequence[str] = vlastream("gpu"), library: Callable[[], Library] = Library) -> int:
    """Run the group until told to stop; returns the exit status of the process."""
    lifecycle = Lifecycle(settings.shutdown_timeout_s + 2 * _STOP_MARGIN_S)
    with lifecycle.signals():
        try:
            _run(settings, lifecycle, argv, library)
        except Exception as error:
            lifecycle.fail(error)
        return lifecycle.close()


def _run(settings: Settings, lifecycle: Lifecycle, argv: Sequence[str], library: Callable[[], Library]) -> None:
    uuids, why_none = _devices(library)
    plan = plan_workers(uuids, settings.cuda_visible_devices, settings.inference_max_workers, why_none)
    log.info("%s", plan.reason, extra={"action": "plan"})
    names = plan.devices or tuple(f"cpu-{number}" for number in range(plan.cpu_workers))
    first = settings.metrics_port + 1
    ports = [first + number if settings.metrics_port else free_port() for number in range(len(names))]
    commands = [
        (name, Command(argv, env=_environment(settings, number, ports[number], name if plan.devices else "")))
        for number, name in enumerate(names)
    ]
    metrics = Metrics()

    def ended(name: str, status: int, delay_s: float) -> None:
        metrics.gpu_worker_restarts.labels(name, str(status)).inc()
        why = "its device is sick" if status == EXIT_DEVICE else f"status {status}"
        log.warning("the worker on %s ended (%s): again in %.1f s", name, why, delay_s, extra={"action": "restart"})

    children = Children(commands, back_off=back_off_of, on_exit=ended)
    host = _ANYWHERE.get(settings.host, settings.host)
    status = StatusServer(
        host=settings.host,
        port=settings.metrics_port,
        metrics=metrics if settings.enable_prometheus else None,
        waiting=lambda: _waiting(children.running, dict(zip(names, ports, strict=True)), host),
    )
    lifecycle.on_close("status server", status.close)
    try:
        while not lifecycle.stopping.is_set():
            children.tick()
            lifecycle.stopping.wait(_TICK_S)
    finally:
        # In the thread that started them. Workers drain by themselves within their shutdown time.
        children.stop(Deadline(settings.shutdown_timeout_s + _STOP_MARGIN_S), threading.Event())


def _devices(library: Callable[[], Library]) -> tuple[list[str], str]:
    """UUIDs of the GPUs that answer; why there are none."""
    try:
        opened = library()
        uuids = opened.uuids()
        opened.close()
    except NvmlError as error:
        return [], f"NVML: {error}"
    return uuids, ""


def _environment(settings: Settings, number: int, port: int, device: str) -> Mapping[str, str]:
    own = {"ROLE_INSTANCE": str(settings.role_instance + number), "METRICS_PORT": str(port)}
    if not device:
        return own
    # It sees one device, which is then its first.
    return {**own, "CUDA_VISIBLE_DEVICES": device, "GPU_DEVICE": "0", "REQUIRE_GPU": "true"}


def _waiting(running: Mapping[str, int], ports: Mapping[str, int], host: str) -> list[str]:
    """Who is not ready of those that run. One whose device is sick does not make the others unready."""
    late = [f"the worker on {name}" for name in running if not answers_ready(ports[name], host)]
    return late if running else ["any worker"]
