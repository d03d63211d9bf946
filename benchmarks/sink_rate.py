"""How fast the sinks write: rows a second into Postgres, MB a second into Parquet on the embedded S3 server.

    python -m benchmarks.sink_rate

A backlog is put into the log first; then one sink process starts, and its counters are read until it is through. The
rate is the slope of its counter from the first write to the last, so that starting up is not in it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
from confluent_kafka import Producer

from benchmarks import goals, machine, report
from benchmarks.own_stack import FOLDER, Target, own_stack
from benchmarks.scenarios import instant
from benchmarks.sink_records import observation, outcome
from runtime.errors import Unavailable
from runtime.kafka import build_producer
from runtime.stack.layout import free_port
from runtime.stack.roles import vlastream
from schemas.topics import OUTCOMES, accepted_topic

ROWS_PER_S, MB_PER_S = 2000.0, 50.0
#: Small enough that many files are written during a run; an installation's are larger.
PARQUET_FILE_BYTES = 16 * 1024 * 1024
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Run:
    """One sink over its backlog."""

    amount: float
    seconds: float
    per_s: float
    cpu_s: float
    rss_mb: float


def main() -> int:
    options = _parser().parse_args()
    here = machine.describe()
    deployment = instant()
    with own_stack((deployment,), say, without=("gate", "gpu", "sink postgres", "sink parquet")) as target:
        producer = build_producer(target.settings, "benchmark")
        partitions = target.settings.kafka_partitions
        say(f"producing {options.rows} outcomes")
        for number in range(options.rows):
            value = outcome(number // partitions, consent_tier="metadata")
            _produce(producer, OUTCOMES, number % partitions, value, {})
        _flushed(producer)
        postgres = _run(target, "postgres", "vla_sink_rows_total", {}, float(options.rows), options.timeout)
        say(f"producing {options.observations} observations of {options.frame_bytes} bytes")
        for number in range(options.observations):
            value, headers = observation(options.frame_bytes, number, partitions)
            topic = accepted_topic(deployment.model)
            _produce(producer, topic, number % target.settings.kafka_accepted_partitions, value, headers)
        _flushed(producer)
        wanted = 0.95 * options.observations * options.frame_bytes
        env = {
            "PARQUET_MAX_FILE_BYTES": str(PARQUET_FILE_BYTES),
            "PARQUET_FLUSH_INTERVAL_S": "2",
            "ANONYMIZATION_LEVEL": "none",
        }
        parquet = _run(target, "parquet", "vla_sink_bytes_total", env, wanted, options.timeout)
    text, document = _report(postgres, parquet, options, here)
    say("\n" + text)
    name = options.name or f"{here.date}-sink-rate"
    say(f"saved: {report.save(name, text, document, options.out)}")
    return 0


def say(text: str) -> None:
    print(text, flush=True)


def _produce(producer: Producer, topic: str, partition: int, value: bytes, headers: Mapping[str, bytes]) -> None:
    while True:
        try:
            producer.produce(topic, value=value, key=b"robot", headers=list(headers.items()), partition=partition)
        except BufferError:
            producer.poll(0.1)
            continue
        producer.poll(0)
        return


def _flushed(producer: Producer) -> None:
    if producer.flush(60.0):
        raise Unavailable("the backlog did not get into Kafka within 60 s")


def _run(target: Target, kind: str, metric: str, env: Mapping[str, str], wanted: float, timeout_s: float) -> Run:
    """Start the sink and watch its counter until it has reached `wanted`. Raises Unavailable without a rate."""
    say(f"starting the {kind} sink")
    points: list[tuple[float, float]] = []
    with _sink(target, kind, env) as (process, url):
        end = time.monotonic() + timeout_s
        while not points or points[-1][1] < wanted:
            if time.monotonic() > end:
                written = points[-1][1] if points else 0.0
                say(f"after {timeout_s:g} s the {kind} sink has written {written:.0f} of {wanted:.0f}")
                break
            if process.status() == psutil.STATUS_ZOMBIE:
                raise Unavailable(f"the {kind} sink has ended: its messages stand above")
            time.sleep(_POLL_S)
            value = _counter(url, metric)
            if value and (not points or value > points[-1][1]):
                points.append((time.monotonic(), value))
        times = process.cpu_times()
        rss_mb = process.memory_info().rss / 1e6
    if len(points) < 2:
        raise Unavailable(f"the {kind} sink wrote {len(points)} times within {timeout_s:g} s: too few for a rate")
    moments, values = np.array(points).T
    slope = float(np.polyfit(moments - moments[0], values, 1)[0])
    return Run(values[-1], float(moments[-1] - moments[0]), slope, times.user + times.system, rss_mb)


@contextmanager
def _sink(target: Target, kind: str, env: Mapping[str, str]) -> Iterator[tuple[psutil.Process, str]]:
    port = free_port()
    s3 = target.document["s3"]
    environment = {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": target.settings.kafka_bootstrap_servers,
        "DATABASE_URL": target.document["database"],
        "S3_ENDPOINT": s3["endpoint"],
        "S3_BUCKET": s3["bucket"],
        "S3_ACCESS_KEY": s3["access_key"],
        "S3_SECRET_KEY": s3["secret_key"],
        "METRICS_PORT": str(port),
        "CARDS_DIR": str((FOLDER / "cards").absolute()),
        "LOG_LEVEL": "WARNING",
        **env,
    }
    with subprocess.Popen([*vlastream("sink", kind)], env=environment) as process:
        try:
            yield psutil.Process(process.pid), f"http://127.0.0.1:{port}/metrics"
        finally:
            process.kill()


def _counter(url: str, metric: str) -> float:
    """Sum of a metric's series; 0 while the process does not serve yet."""
    try:
        text = httpx.get(url, timeout=2.0, trust_env=False).text
    except httpx.HTTPError:
        return 0.0
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(metric))


def _report(
    postgres: Run, parquet: Run, options: argparse.Namespace, here: machine.Machine
) -> tuple[str, dict[str, object]]:
    verdicts = [
        goals.at_least("Postgres sink", postgres.per_s, ROWS_PER_S, "rows/s"),
        goals.at_least("Parquet sink", parquet.per_s / 1e6, MB_PER_S, "MB/s"),
        goals.Verdict("Postgres sink, resident set <= 150 MB", f"{postgres.rss_mb:.0f} MB", postgres.rss_mb <= 150),
        goals.Verdict("Parquet sink, resident set <= 400 MB", f"{parquet.rss_mb:.0f} MB", parquet.rss_mb <= 400),
    ]
    rows = [
        ("Postgres", f"{postgres.amount:.0f} rows", f"{postgres.per_s:.0f} rows/s", *_costs(postgres)),
        ("Parquet", f"{parquet.amount / 1e6:.0f} MB", f"{parquet.per_s / 1e6:.1f} MB/s", *_costs(parquet)),
    ]
    note = (
        f"Observations: JPEG of {options.frame_bytes} bytes; Parquet files of {PARQUET_FILE_BYTES >> 20} MiB; "
        "S3Proxy; nothing anonymized."
    )
    head = report.heading("The sinks", here, ["python", "-m", "benchmarks.sink_rate", *sys.argv[1:]], [note])
    columns = ("sink", "written", "rate", "from first to last write, s", "CPU of the process, s", "resident set, MB")
    text = "\n\n".join([head, report.table(columns, rows), report.verdict_table(verdicts)]) + "\n"
    return text, {"machine": here, "postgres": postgres, "parquet": parquet, "goals": verdicts}


def _costs(run: Run) -> tuple[str, str, str]:
    return f"{run.seconds:.1f}", f"{run.cpu_s:.1f}", f"{run.rss_mb:.0f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--observations", type=int, default=5_000)
    parser.add_argument("--frame-bytes", type=int, default=50_000)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for each sink")
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    parser.add_argument("--name", help="file name of the report, without ending")
    return parser


if __name__ == "__main__":
    sys.exit(main())
