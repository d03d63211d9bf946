"""Faust loses messages when a worker with tables is killed, unless the mend holds. Real Kafka, real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime.settings import Settings
from runtime.stack.kafka import Kafka
from runtime.stack.layout import Layout, free_port
from runtime.topic_admin import apply_topics
from tests.cards import write_cards
from tests.embedded import running
from tests.fleet_log import InstantWorker, OpenLoopLoad, OutcomeReader

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

CYCLES = 4
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def card_folder(tmp_path: Path) -> Path:
    return write_cards(tmp_path / "cards")


class GateProcess:
    """One `vlastream gate`, killed and started again."""

    def __init__(self, environment: dict[str, str], instance: int, log: Path) -> None:
        self.port = free_port()
        self._environment = environment | {"ROLE_INSTANCE": str(instance), "METRICS_PORT": str(self.port)}
        self._log = log
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "runtime.cli", "gate"],
                env=self.environment,
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self._environment}

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            assert self.process.poll() is None, f"the gate ended:\n{self._log.read_text()[-3000:]}"
            return False

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


@contextmanager
def gates(environment: dict[str, str], folder: Path) -> Iterator[list[GateProcess]]:
    processes = [GateProcess(environment, i, folder / f"gate-{i}.log") for i in range(2)]
    try:
        yield processes
    finally:
        for gate in processes:
            gate.end(signal.SIGKILL)


def wait_until_ready(gate: GateProcess, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not gate.ready():
        assert time.monotonic() < end, "the gate did not become ready"
        time.sleep(0.1)


def wait_for_settled_group(load: OpenLoopLoad, reader: OutcomeReader, requests: int = 60) -> None:
    """Until that many more requests, two seconds' worth of every robot, have their outcomes."""
    first, end = len(load.sent), time.monotonic() + 60
    while len(load.sent) < first + requests:
        assert time.monotonic() < end, "the load does not run"
        time.sleep(0.05)
    assert reader.read_until(set(load.sent[: first + requests]), timeout_s=60) == set()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_request_is_lost_and_none_decided_twice_while_gates_die_and_return(
    how: signal.Signals, own_layout: Layout, card_folder: Path, tmp_path: Path
) -> None:
    broker = Kafka(own_layout)
    with running(broker, own_layout):
        environment = {
            "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap,
            "CARDS_DIR": str(card_folder),
            "DATA_DIR": str(tmp_path / "data"),
            "KAFKA_SESSION_TIMEOUT_MS": "3000",
        }
        settings = Settings.model_validate(
            {
                "kafka_bootstrap_servers": environment["KAFKA_BOOTSTRAP_SERVERS"],
                "cards_dir": card_folder,
            }
        )
        apply_topics(settings)
        with gates(environment, tmp_path) as processes, InstantWorker(settings):
            for gate in processes:
                wait_until_ready(gate)
            reader = OutcomeReader(settings)
            with OpenLoopLoad(settings, rate_hz=30) as load:
                for cycle in range(CYCLES):
                    # Both gates serve: a group that is still moving partitions is another case.
                    wait_for_settled_group(load, reader)
                    victim = processes[cycle % 2]
                    status = victim.end(how)
                    assert status == (-signal.SIGKILL if how is signal.SIGKILL else 0)
                    # The survivor takes over under load before the victim returns.
                    survived = len(load.sent)
                    assert reader.read_until(set(load.sent[:survived]), timeout_s=60) == set()
                    victim.start()
                    wait_until_ready(victim)
            missing = reader.read_until(set(load.sent), timeout_s=60)
            assert missing == set(), f"{len(missing)} of {len(load.sent)} have no outcome"
            reader.close()
        rows = Counter(outcome.row_id for outcome in reader.outcomes)
        by_request = {outcome.request.request_id: outcome.row_id for outcome in reader.outcomes}
        assert len(rows) == len(by_request) == len(load.sent)
        decisions: dict[str, set[str]] = {}
        for outcome in reader.outcomes:
            decisions.setdefault(outcome.row_id, set()).add(outcome.rejection.code or "actions")
        assert all(len(found) == 1 for found in decisions.values())
