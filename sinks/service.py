"""A sink as a process: its clients, its status port, its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from runtime.kafka import build_consumer, build_producer
from runtime.lifecycle import Lifecycle
from runtime.metrics import Metrics
from runtime.publisher import Publisher
from runtime.settings import Settings
from runtime.status_server import StatusServer
from sinks.consent import ConsentView
from sinks.flow import Decode, Flow
from sinks.marks import Limits
from sinks.store import Store

RowT = TypeVar("RowT")

_POLL_S = 0.05

#: Rows are in no hurry: a few large fetches instead of one for each record save the broker work.
_BULK: dict[str, Any] = {"fetch.min.bytes": 256 * 1024, "fetch.wait.max.ms": 300}


def serve(
    settings: Settings,
    *,
    name: str,
    topics: Sequence[str],
    decode: Decode[RowT],
    store: Callable[[Metrics], Store[RowT]],
    close_store: Callable[[], None],
    consent: ConsentView,
    limits: Limits,
    total_bytes: int,
) -> int:
    """Run until a signal; returns the process's exit status. `name` is that of the consumer group too.

    consent: is read to its end before the first record is taken.
    """
    metrics = Metrics()
    lifecycle = Lifecycle(settings.shutdown_timeout_s)
    client_id = f"{name}-{settings.role_instance}"
    lifecycle.on_close("store", lambda deadline: close_store())
    publisher = Publisher(build_producer(settings, client_id), metrics, lifecycle.fail)
    lifecycle.on_close("publisher", lambda deadline: publisher.close(deadline.remaining_s))
    flow: Flow[RowT] = Flow(
        name=name,
        consumer=build_consumer(settings, client_id, group=name, **_BULK),
        topics=topics,
        decode=decode,
        store=store(metrics),
        limits=limits,
        total_bytes=total_bytes,
        publisher=publisher,
        metrics=metrics,
    )

    def waiting() -> list[str]:
        return flow.waiting() if consent.ready else ["the consent topic to be read", *flow.waiting()]

    status = StatusServer(
        host=settings.host,
        port=settings.metrics_port,
        metrics=metrics if settings.enable_prometheus else None,
        waiting=waiting,
        alive=flow.alive,
    )
    lifecycle.on_close("status", status.close)
    lifecycle.on_close("consumer", flow.close)
    with lifecycle.signals():
        try:
            consent.start(lifecycle)
            while not (consent.ready or lifecycle.stopping.wait(_POLL_S)):
                flow.idle()
            flow.run(lifecycle.stopping)
            lifecycle.on_close("drain", flow.drain)
        except Exception as error:
            # Nothing is drained: what failed is read again from the marks.
            lifecycle.fail(error)
        return lifecycle.close()
