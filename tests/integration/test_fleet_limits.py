"""The limit of a fleet whose robots produce to Kafka themselves holds over two gates."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from runtime.kafka import build_producer
from runtime.settings import Settings
from schemas.codes import Code
from schemas.messages import Customer
from schemas.topics import CUSTOMERS, requests_topic
from tests import pictures
from tests.fleet_log import InstantWorker, OutcomeReader, request
from tests.integration.test_gate_takeover import GateProcess, gates, wait_until_ready
from tests.integration.test_request_reply import broker

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

FLEET, LIMIT, ROBOTS = "limited", 80, 20
_MINUTE_MS = 60_000


@pytest.mark.timeout(240)
def test_a_fleets_limit_holds_exactly_over_two_gates(tmp_path: Path, valkey_url: str) -> None:
    with broker(tmp_path, fleets=FLEET) as (_, settings):
        tell_limit(settings)
        environment = {
            "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
            "CARDS_DIR": str(settings.cards_dir),
            "DATA_DIR": str(tmp_path / "data"),
            "REDIS_URL": valkey_url,
            "FLEETS": FLEET,
            "KAFKA_SESSION_TIMEOUT_MS": "3000",
        }
        with gates(environment, tmp_path) as processes, InstantWorker(settings):
            for gate in processes:
                wait_until_ready(gate)
            reader = OutcomeReader(settings)
            # They lie in two windows at most, so that in one of them more came than may be.
            sent = produce(settings, 4 * LIMIT)
            assert reader.read_until(set(sent), timeout_s=90) == set()
            reader.close()
            assert all(refusals(gate) > 0 for gate in processes), "one gate did it all: that tests nothing"
    outcomes = {outcome.request.request_id: outcome for outcome in reader.outcomes}
    windows = {name: outcome.request.requested_at_ms // _MINUTE_MS for name, outcome in outcomes.items()}
    came = Counter(windows.values())
    let_in = Counter(windows[name] for name, outcome in outcomes.items() if outcome.HasField("chunk"))
    assert {window: let_in[window] for window in came} == {window: min(came[window], LIMIT) for window in came}
    refused = [outcome for outcome in outcomes.values() if not outcome.HasField("chunk")]
    assert refused
    for outcome in refused:
        assert (outcome.rejection.code, outcome.rejection.status) == (Code.QUOTA, 429)
        assert [violation.reason for violation in outcome.rejection.violations] == ["requests_per_minute"]
        assert 0 < outcome.rejection.retry_after_s <= 60


def refusals(gate: GateProcess) -> float:
    """For want of a limit's room, by this gate."""
    page = httpx.get(f"http://127.0.0.1:{gate.port}/metrics", trust_env=False).text
    lines = [line for line in page.splitlines() if line.startswith("vla_limit_refusals_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def tell_limit(settings: Settings) -> None:
    customer = Customer(
        customer_id=FLEET, tier="enterprise", active=True, requests_per_minute=LIMIT, at_ms=round(time.time() * 1000)
    )
    producer = build_producer(settings, "operator")
    producer.produce(CUSTOMERS, customer.SerializeToString(), key=FLEET)
    assert producer.flush(30) == 0


def produce(settings: Settings, count: int) -> list[str]:
    """Records of many robots at once, so that they lie in all partitions and both gates have some."""
    producer, picture = build_producer(settings, "robots"), pictures.jpeg()
    asked = [request(number, robot_id=f"arm-{number % ROBOTS}", picture=picture) for number in range(count)]
    for one in asked:
        producer.produce(requests_topic(FLEET), one.SerializeToString(), key=one.robot_id)
        producer.poll(0)
    assert producer.flush(60) == 0
    return [one.request_id for one in asked]
