"""What the requests of the last minutes add up to: pace, outcomes, latency, batches, robots."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, func, literal, select

from ingest_api.reading import Reader, Row
from runtime.tables import inference_log

#: Spans that may be asked for: longer ones are the ETL's.
WINDOWS_S = (300, 900, 3600)
#: Points in which the pace is told.
BINS = 30
#: Robots that are listed, those seen last first.
MOST_ROBOTS = 50
#: No look at a busy installation may hold up Postgres for longer.
_SETTINGS = (("statement_timeout", "3000"),)
_LOG = inference_log.c


@dataclass(frozen=True, slots=True)
class Bin:
    """One part of the window: requests a second, how many of them brought actions, p95 of the latency in ms."""

    begins_at: datetime
    per_s: float
    succeeded_per_s: float
    p95_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Latencies in milliseconds, of requests that brought actions: total from append to completion."""

    window_s: int
    requests: int
    per_s: float
    #: Status -> requests, most first.
    statuses: dict[str, int] = field(default_factory=dict)
    #: Refusal code -> requests, most first.
    refusals: dict[str, int] = field(default_factory=dict)
    #: total, queue, gpu -> {"p50": ..., "p95": ..., "p99": ...}
    latency: dict[str, dict[str, float | None]] = field(default_factory=dict)
    #: Batch size -> requests that rode in such a batch, by size.
    batches: dict[int, int] = field(default_factory=dict)
    bins: list[Bin] = field(default_factory=list)
    robots: list[Row] = field(default_factory=list)


async def fleet_figures(reader: Reader, customer_id: str | None, window_s: int, now: datetime | None = None) -> Figures:
    """customer_id None: of everybody, which is for operators alone. Raises Unavailable."""
    until = now or datetime.now(UTC)
    return await asyncio.to_thread(_read, reader, customer_id, window_s, until)


def outcomes_query(customer_id: str | None, since: datetime) -> Select[Any]:
    requests = func.count().label("requests")
    query = select(_LOG.status, _LOG.code, requests).group_by(_LOG.status, _LOG.code).order_by(requests.desc())
    return _of(query, customer_id, since)


def latency_query(customer_id: str | None, since: datetime) -> Select[Any]:
    columns = {"total": _LOG.latency_total_ms, "queue": _LOG.latency_queue_ms, "gpu": _LOG.latency_gpu_ms}
    percentiles = [
        _percentile(share, column).label(f"{name}_p{round(share * 100)}")
        for name, column in columns.items()
        for share in (0.5, 0.95, 0.99)
    ]
    return _of(select(*percentiles), customer_id, since).where(_LOG.status == "success")


def batches_query(customer_id: str | None, since: datetime) -> Select[Any]:
    query = select(_LOG.batch_size, func.count().label("requests")).where(_LOG.batch_size.is_not(None))
    return _of(query, customer_id, since).group_by(_LOG.batch_size).order_by(_LOG.batch_size)


def bins_query(customer_id: str | None, since: datetime, bin_s: float) -> Select[Any]:
    begins_at = func.date_bin(literal(timedelta(seconds=bin_s)), _LOG.created_at, literal(since)).label("begins_at")
    query = select(
        begins_at,
        func.count().label("requests"),
        func.count().filter(_LOG.status == "success").label("succeeded"),
        _percentile(0.95, _LOG.latency_total_ms).filter(_LOG.status == "success").label("p95_ms"),
    )
    return _of(query, customer_id, since).group_by("begins_at").order_by("begins_at")


def robots_query(customer_id: str | None, since: datetime) -> Select[Any]:
    last_seen = func.max(_LOG.created_at).label("last_seen")
    query = select(
        _LOG.customer_id,
        _LOG.robot_id,
        func.max(_LOG.robot_type).label("robot_type"),
        func.max(_LOG.model).label("model"),
        func.count().label("requests"),
        func.count().filter(_LOG.status == "success").label("succeeded"),
        _percentile(0.5, _LOG.latency_total_ms).filter(_LOG.status == "success").label("p50_ms"),
        last_seen,
    )
    query = _of(query, customer_id, since).group_by(_LOG.customer_id, _LOG.robot_id)
    return query.order_by(last_seen.desc(), _LOG.robot_id).limit(MOST_ROBOTS)


def _of(query: Select[Any], customer_id: str | None, since: datetime) -> Select[Any]:
    query = query.where(_LOG.created_at >= since)
    return query if customer_id is None else query.where(_LOG.customer_id == customer_id)


def _percentile(share: float, column: ColumnElement[Any]) -> Any:
    return func.percentile_cont(share).within_group(column)


def _read(reader: Reader, customer_id: str | None, window_s: int, until: datetime) -> Figures:
    since = until - timedelta(seconds=window_s)
    bin_s = window_s / BINS

    def rows(query: Select[Any]) -> list[Row]:
        return reader.rows(query, _SETTINGS)

    outcomes = rows(outcomes_query(customer_id, since))
    latency = next(iter(rows(latency_query(customer_id, since))), {})
    total = sum(row["requests"] for row in outcomes)
    return Figures(
        window_s=window_s,
        requests=total,
        per_s=total / window_s,
        statuses=_summed((row["status"], row["requests"]) for row in outcomes),
        refusals=_summed((row["code"], row["requests"]) for row in outcomes if row["code"]),
        latency={
            part: {name: latency.get(f"{part}_{name}") for name in ("p50", "p95", "p99")}
            for part in ("total", "queue", "gpu")
        },
        batches={row["batch_size"]: row["requests"] for row in rows(batches_query(customer_id, since))},
        bins=_filled(rows(bins_query(customer_id, since, bin_s)), since, bin_s),
        robots=rows(robots_query(customer_id, since)),
    )


def _filled(rows: list[Row], since: datetime, bin_s: float) -> list[Bin]:
    """Every part of the window, those without requests too."""
    found = {round((row["begins_at"] - since).total_seconds() / bin_s): row for row in rows}
    bins = []
    for number in range(BINS):
        row = found.get(number, {"requests": 0, "succeeded": 0, "p95_ms": None})
        begins_at = since + timedelta(seconds=number * bin_s)
        bins.append(Bin(begins_at, row["requests"] / bin_s, row["succeeded"] / bin_s, row["p95_ms"]))
    return bins


def _summed(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for name, count in pairs:
        sums[name] = sums.get(name, 0) + count
    return dict(sorted(sums.items(), key=lambda item: -item[1]))
