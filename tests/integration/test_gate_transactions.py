"""A bridge that produces in transactions leaves offsets without a record; the gate passes over them, and only them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition

from runtime.kafka import build_consumer, client_config, end_positions
from runtime.settings import Settings
from runtime.stack.kafka import Kafka
from runtime.stack.layout import Layout
from runtime.topic_admin import apply_topics
from schemas import headers as h
from schemas.topics import REQUESTS
from tests import pictures
from tests.embedded import running
from tests.fleet_log import InstantWorker, OutcomeReader, request
from tests.integration.test_gate_takeover import card_folder, gates, wait_until_ready

__all__ = ["card_folder"]
CUSTOMER: list[tuple[str, str | bytes | None]] = [*h.encode({h.CUSTOMER_ID: "customer"})]
pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def wait_until_committed_to_the_end(settings: Settings, timeout_s: float = 60) -> None:
    consumer = build_consumer(settings, "lag", group="vla-gate")
    ends = end_positions(consumer, REQUESTS)
    places = [TopicPartition(REQUESTS, partition) for partition in ends]
    end = time.monotonic() + timeout_s
    while True:
        committed = {at.partition: max(at.offset, 0) for at in consumer.committed(places, timeout=10)}
        if committed == ends:
            break
        assert time.monotonic() < end, f"committed {committed}, the log ends at {ends}"
        time.sleep(0.2)
    consumer.close()


@pytest.mark.timeout(200)
def test_transaction_markers_neither_stop_the_gate_nor_hold_its_offsets_back(
    own_layout: Layout, card_folder: Path, tmp_path: Path
) -> None:
    broker = Kafka(own_layout)
    with running(broker, own_layout):
        environment = {
            "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap,
            "CARDS_DIR": str(card_folder),
            "DATA_DIR": str(tmp_path / "data"),
            "KAFKA_SESSION_TIMEOUT_MS": "3000",
        }
        settings = Settings.model_validate({"kafka_bootstrap_servers": broker.bootstrap, "cards_dir": card_folder})
        apply_topics(settings)
        with gates(environment, tmp_path) as processes, InstantWorker(settings):
            for gate in processes:
                wait_until_ready(gate)
            bridge = Producer({**client_config(settings, "bridge"), "transactional.id": "bridge"})
            bridge.init_transactions()
            kept: list[str] = []
            for number in range(30):
                bridge.begin_transaction()
                asked = request(number, robot_id=f"arm-{number % 6}", picture=pictures.jpeg())
                bridge.produce(REQUESTS, asked.SerializeToString(), key=asked.robot_id, headers=CUSTOMER)
                if number % 5 == 4:
                    bridge.flush()
                    bridge.abort_transaction()
                else:
                    bridge.commit_transaction()
                    kept.append(asked.request_id)
            reader = OutcomeReader(settings)
            assert reader.read_until(set(kept), timeout_s=60) == set()
            reader.close()
            # Something to read behind the last marker of each partition.
            last = [request(100 + n, robot_id=f"arm-{n}", picture=pictures.jpeg()) for n in range(6)]
            plain = Producer({**client_config(settings, "plain"), "partitioner": "murmur2_random"})
            for partition in range(settings.kafka_partitions):
                asked = last[partition]
                plain.produce(REQUESTS, asked.SerializeToString(), partition=partition, headers=CUSTOMER)
            assert plain.flush(10) == 0
            wait_until_committed_to_the_end(settings)
            assert all(gate.process.poll() is None for gate in processes), "a gate ended"
