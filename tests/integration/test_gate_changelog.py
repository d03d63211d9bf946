"""What somebody else wrote into the gate's changelog stops a gate, which says what to do; and doing that mends it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.kafka import build_producer
from schemas.topics import GATE_CHANGELOG
from tests.integration.test_gate_takeover import ROOT, GateProcess, wait_until_ready
from tests.integration.test_request_reply import broker

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def test_a_record_of_nobody_in_the_changelog_is_named_and_the_runbook_takes_it_out(tmp_path: Path) -> None:
    section = (ROOT / "docs" / "runbook.md").read_text().partition("## GateChangelogDamaged")[2]
    (script,) = re.findall(r"<<'END'\n(.*?)END\n", section, re.DOTALL)
    with broker(tmp_path) as (_, settings):
        producer = build_producer(settings, "intruder")
        producer.produce(GATE_CHANGELOG, b"\xff not a row", key=b"row-\xfe", partition=1)
        assert producer.flush(30) == 0
        environment = {
            "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
            "CARDS_DIR": str(settings.cards_dir),
            "DATA_DIR": str(tmp_path / "data"),
            "STACK_FILE": str(settings.stack_file),
            "ENABLE_RATE_LIMITS": "false",
            "KAFKA_SESSION_TIMEOUT_MS": "3000",
        }
        gate = GateProcess(environment, 0, tmp_path / "gate.log")
        try:
            assert gate.process.wait(timeout=60) == 70
            said = (tmp_path / "gate.log").read_text()
            (key,) = set(re.findall(r"with the key ([0-9a-f]+) \(hex\): see GateChangelogDamaged", said))
            assert bytes.fromhex(key) == b"row-\xfe"
            mend = [sys.executable, "-", key]
            subprocess.run(mend, input=script, text=True, env=gate.environment, cwd=ROOT, check=True, timeout=60)
            gate.start()
            wait_until_ready(gate)
        finally:
            gate.end(signal.SIGKILL)
