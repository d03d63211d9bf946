"""A client that has forgotten its brokers is noticed, one whose brokers are down is left alone."""

from __future__ import annotations

import json
import threading

import pytest

from runtime.broker_watch import PATIENCE_S, BrokerWatch
from runtime.errors import Fatal, Unavailable
from runtime.metrics import Metrics
from runtime.publisher import Publisher

LEARNED = {"127.0.0.1:9092/1": {"source": "learned", "state": "UP", "nodeid": 1}}
DOWN = {"127.0.0.1:9092/1": {"source": "learned", "state": "DOWN", "nodeid": 1}}
BOOTSTRAP = {"127.0.0.1:9092/bootstrap": {"source": "configured", "state": "INIT", "nodeid": -1}}
FORGOTTEN = {
    ":0/internal": {"source": "internal", "state": "INIT", "nodeid": -1},
    "GroupCoordinator": {"source": "logical", "state": "DOWN", "nodeid": -1},
}


class Watched:
    def __init__(self) -> None:
        self.now_s = 100.0
        self._watch = BrokerWatch("client", lambda: self.now_s)

    def tell(self, brokers: dict[str, dict[str, object]], after_s: float = 0.0) -> None:
        self.now_s += after_s
        self._watch(json.dumps({"brokers": brokers}))


def test_a_client_without_any_broker_ends_after_a_while() -> None:
    client = Watched()
    client.tell(FORGOTTEN)
    client.tell(FORGOTTEN, after_s=PATIENCE_S - 1)
    with pytest.raises(Unavailable, match="forgotten its brokers"):
        client.tell(FORGOTTEN, after_s=1)


def test_a_client_that_finds_its_brokers_again_goes_on() -> None:
    client = Watched()
    client.tell(FORGOTTEN)
    client.tell(BOOTSTRAP, after_s=PATIENCE_S - 1)
    client.tell(FORGOTTEN, after_s=PATIENCE_S)
    client.tell(FORGOTTEN, after_s=PATIENCE_S - 1)
    client.tell(LEARNED, after_s=PATIENCE_S)


def test_an_outage_however_long_is_no_reason() -> None:
    client = Watched()
    for _ in range(10):
        client.tell(DOWN, after_s=PATIENCE_S)


class ForgetfulProducer:
    """Serves reports until it is told to forget; then its poll raises what the watch raised in it."""

    def __init__(self) -> None:
        self.forgets = threading.Event()

    def poll(self, timeout_s: float) -> int:
        if self.forgets.wait(timeout_s):
            raise Unavailable("the Kafka client p has forgotten its brokers")
        return 0

    def flush(self, timeout_s: float) -> int:
        return 0


def test_a_publisher_whose_producer_is_done_for_says_so_and_takes_nothing_more() -> None:
    producer, told, failures = ForgetfulProducer(), threading.Event(), []

    def fail(error: Exception) -> None:
        failures.append(error)
        told.set()

    publisher = Publisher(producer, Metrics(), fail)  # type: ignore[arg-type] # what it needs of one
    producer.forgets.set()
    assert told.wait(10)
    with pytest.raises(Fatal, match="forgotten its brokers"):
        publisher.publish("topic", b"value")
    publisher.close(1.0)
    assert len(failures) == 1
