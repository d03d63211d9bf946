"""/metrics/federate: one exposition of all processes."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ingest_api.federation import merge, scrape
from runtime.metrics import Metrics
from runtime.targets import Target, targets_file, targets_of
from tests.unit.api_case import Api, sandbox

GATE_1, GATE_2 = Target("gate", "http://127.0.0.1:7001/metrics"), Target("gate", "http://127.0.0.1:7002/metrics")
GPU = Target("gpu", "http://127.0.0.1:7003/metrics")


def exposition(outcomes: int) -> str:
    metrics = Metrics()
    metrics.outcomes.labels("ok").inc(outcomes)
    metrics.http_duration.labels("/").observe(0.002)
    return metrics.exposition().decode()


def samples(text: bytes, name: str) -> dict[tuple[str, str], float]:
    """Values of a sample by role and instance."""
    return {
        (sample.labels["role"], sample.labels["instance"]): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name == name
    }


def test_series_of_all_processes_stand_side_by_side() -> None:
    merged = merge([(GATE_1, exposition(3)), (GATE_2, exposition(4)), (GPU, exposition(0))])
    assert samples(merged, "vla_outcomes_total") == {
        ("gate", "127.0.0.1:7001"): 3,
        ("gate", "127.0.0.1:7002"): 4,
        ("gpu", "127.0.0.1:7003"): 0,
    }
    assert len(samples(merged, "vla_http_request_duration_seconds_count")) == 3


def test_each_family_is_described_once_and_keeps_its_type() -> None:
    merged = merge([(GATE_1, exposition(3)), (GATE_2, exposition(4))]).decode()
    lines = merged.splitlines()
    for prefix in ("# HELP ", "# TYPE "):
        names = [line.split()[2] for line in lines if line.startswith(prefix)]
        assert len(names) == len(set(names))
    assert "# TYPE vla_outcomes_total counter" in lines
    assert "# TYPE vla_http_request_duration_seconds histogram" in lines


@pytest.mark.parametrize("text", [None, "this is { no metrics\n"])
def test_a_process_that_cannot_be_read_is_shown_as_down(text: str | None) -> None:
    merged = merge([(GATE_1, exposition(3)), (GPU, text)])
    assert samples(merged, "vla_federate_up") == {("gate", "127.0.0.1:7001"): 1, ("gpu", "127.0.0.1:7003"): 0}
    assert samples(merged, "vla_outcomes_total") == {("gate", "127.0.0.1:7001"): 3}


def test_two_types_under_one_name_do_not_spoil_the_rest() -> None:
    other = "# HELP vla_outcomes_total x\n# TYPE vla_outcomes_total gauge\nvla_outcomes_total 5\nvla_extra 1\n"
    merged = merge([(GATE_1, exposition(3)), (GPU, other)])
    assert samples(merged, "vla_outcomes_total")[("gate", "127.0.0.1:7001")] == 3
    assert samples(merged, "vla_extra") == {("gpu", "127.0.0.1:7003"): 1}


async def test_a_dead_target_does_not_stop_the_others() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.port == 7003:
            raise httpx.ConnectError("refused")
        return httpx.Response(500 if request.url.port == 7002 else 200, text=exposition(1))

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        found = dict(await scrape([GATE_1, GATE_2, GPU], client))
    assert found[GATE_1] is not None
    assert (found[GATE_2], found[GPU]) == (None, None)


def test_targets_come_from_the_stack_and_else_from_the_settings(tmp_path: Path) -> None:
    settings = sandbox(tmp_path, federate_targets=("gate=http://h:1/metrics",))
    assert targets_of(settings) == [Target("gate", "http://h:1/metrics")]
    settings.stack_file.write_text("{ half")
    assert targets_of(settings) == [Target("gate", "http://h:1/metrics")]
    processes = [
        {"role": "kafka", "pid": 3, "metrics": None},
        {"role": "sink postgres", "pid": 1, "metrics": "http://h:2/metrics"},
    ]
    settings.stack_file.write_text(json.dumps({"processes": processes}))
    assert targets_of(settings) == [Target("sink postgres", "http://h:2/metrics")]
    assert json.loads(targets_file(settings)) == [
        {"targets": ["h:2"], "labels": {"role": "sink postgres", "__metrics_path__": "/metrics"}}
    ]


async def test_the_route_answers_although_nobody_can_be_reached() -> None:
    api = Api()
    api.targets = [Target("gate", "http://127.0.0.1:9/metrics")]
    async with api.client(None) as client:
        answer = await client.get("/metrics/federate")
    assert answer.status_code == 200
    assert 'vla_federate_up{instance="127.0.0.1:9",role="gate"} 0.0' in answer.text
