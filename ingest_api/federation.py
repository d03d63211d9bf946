"""GET /metrics/federate: the series of every role in one answer, each with a `role` and an `instance` label."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

import httpx
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from runtime.targets import Target

log = logging.getLogger(__name__)

_TIMEOUT_S = 2.0


async def scrape(targets: Sequence[Target], client: httpx.AsyncClient) -> list[tuple[Target, str | None]]:
    """The exposition of every target; None for one that does not answer."""

    async def one(target: Target) -> tuple[Target, str | None]:
        try:
            answer = await client.get(target.url, timeout=_TIMEOUT_S)
            answer.raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            log.warning("%s is not scraped: %s", target.url, error, extra={"action": "federate"})
            return target, None
        return target, answer.text

    return list(await asyncio.gather(*map(one, targets)))


def merge(scraped: Iterable[tuple[Target, str | None]]) -> bytes:
    """One exposition: each family once, with the samples of all processes. A process that cannot be read is down."""
    families: dict[str, Metric] = {}
    up = GaugeMetricFamily("vla_federate_up", "1 for a process whose metrics are in here", labels=("role", "instance"))
    for target, text in scraped:
        own = None if text is None else _families(text)
        up.add_metric([target.role, target.instance], 0 if own is None else 1)
        for family in own or ():
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            if merged.type != family.type:
                # Two versions side by side in a roll-out: one family cannot have two types.
                log.warning("%s of %s has another type", family.name, target.role, extra={"action": "federate"})
                continue
            for sample in family.samples:
                labels = {**sample.labels, "role": target.role, "instance": target.instance}
                merged.add_sample(sample.name, labels, sample.value, sample.timestamp, sample.exemplar)
    registry = CollectorRegistry()
    registry.register(_Merged([up, *families.values()]))
    return generate_latest(registry)


def _families(text: str) -> list[Metric] | None:
    try:
        return list(text_string_to_metric_families(text))
    except ValueError as error:
        log.warning("metrics that cannot be read: %s", error, extra={"action": "federate"})
        return None


class _Merged(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
