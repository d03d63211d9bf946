"""A real Prometheus scrapes every role of the running stack; every panel's query and every alert finds its series.

Needs prometheus and promtool (Debian's package `prometheus`); `make test-ops` installs them where it can.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml

from deploy.grafana.boards import DASHBOARDS
from deploy.grafana.panels import Panel, Query
from runtime.stack.layout import free_port
from runtime.stack.roles import vlastream
from tests.e2e.running_stack import RunningStack, observation

pytestmark = [
    pytest.mark.stack,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("prometheus") and shutil.which("promtool")),
        reason="prometheus and promtool are not installed: `make test-ops` installs Debian's package `prometheus`",
    ),
]

CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
_SCRAPE_S = 1
_PANELS = [(dashboard, panel) for dashboard in DASHBOARDS for panel in dashboard.panels]


class Prometheus:
    """A running server's query API."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=10, trust_env=False)

    def get(self, path: str, **parameters: str) -> Any:
        answer = self._client.get(f"/api/v1/{path}", params=parameters)
        document = answer.json()
        assert document["status"] == "success", document
        return document["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("query", query=expr)["result"]
        return found

    def close(self) -> None:
        self._client.close()

    def is_ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False


def _until(condition: Any, what: str, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.2)


@pytest.fixture(scope="module")
def prometheus(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scrapes the stack by the project's own configuration, only more often."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((CONFIG / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{_SCRAPE_S}s", "evaluation_interval": "1s"}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(CONFIG / "alerts.yml", folder)
    (folder / "targets").mkdir()
    targets = subprocess.run(
        vlastream("metrics", "targets"), check=True, capture_output=True, text=True, env=stack.environment
    ).stdout
    (folder / "targets" / "stack.json").write_text(targets)
    subprocess.run(["promtool", "check", "config", str(folder / "prometheus.yml")], check=True, capture_output=True)
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        server = Prometheus(f"http://127.0.0.1:{port}")
        try:
            _until(server.is_ready, f"Prometheus did not start: {(folder / 'log').read_text()[-2000:]}")
            yield server
        finally:
            server.close()
            process.terminate()
            process.wait(timeout=20)


@pytest.fixture(scope="module")
def lived(stack: RunningStack, prometheus: Prometheus) -> Prometheus:
    """Prometheus once it has seen requests of every kind, twice in each series at least."""
    robots = 3
    for step in range(2):
        for seed in range(800, 800 + robots):
            body = observation(seed=seed, step=step)
            assert stack.post(body).status_code in (200, 422)
            assert stack.post(body).status_code in (200, 422), "a retry is answered again"
        # Another id with the same content, an unknown robot, no key: refusals of several kinds.
        assert stack.post({**observation(seed=800, step=step)}).status_code == 422
        assert stack.post(observation(seed=803, step=step, robot_type="UNKNOWN")).status_code == 422
        assert httpx.post(f"{stack.api}/v1/inference", json={}).status_code == 401
        answered = prometheus_total(prometheus)
        _until(lambda answered=answered: prometheus_total(prometheus) > answered, "requests are not scraped")
    # Group lag is looked at every five seconds, and a rate needs two scrapes of it.
    _until(lambda: prometheus.query("vla_group_lag"), "the API has not looked at the groups")
    _until(lambda: prometheus.query("rate(vla_sink_rows_total[5m]) > 0"), "no row is seen to be written")
    # A rate needs two scrapes, and each process is scraped at a time of its own.
    before = scrapes(prometheus)
    _until(
        lambda: all(count >= before[target] + 2 for target, count in scrapes(prometheus).items()),
        "some process is not scraped",
    )
    return prometheus


def scrapes(prometheus: Prometheus) -> Counter[str]:
    """How often each process was scraped."""
    found = prometheus.query('count_over_time(up{job="vlastream"}[1h])')
    return Counter({sample["metric"]["instance"]: int(sample["value"][1]) for sample in found})


def prometheus_total(prometheus: Prometheus) -> float:
    found = prometheus.query("sum(vla_http_requests_total)")
    return float(found[0]["value"][1]) if found else -1.0


def test_every_process_is_scraped_under_its_role(stack: RunningStack, lived: Prometheus) -> None:
    up = lived.query('up{job="vlastream"}')
    expected = sorted(process["role"] for process in stack.file["processes"] if process["metrics"])
    assert sorted(sample["metric"]["role"] for sample in up) == expected
    assert {sample["value"][1] for sample in up} == {"1"}
    assert {sample["metric"]["role"] for sample in lived.query("vla_uptime_seconds > 0")} >= {"api", "gate"}


def test_promtool_finds_nothing_to_say_about_the_metrics_of_any_role(stack: RunningStack) -> None:
    for process in stack.file["processes"]:
        if process["metrics"]:
            text = httpx.get(process["metrics"]).text
            done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
            assert done.returncode == 0, f"{process['role']}: {done.stdout}{done.stderr}"


def test_the_checklists_metrics_tell_what_happened(lived: Prometheus) -> None:
    assert float(lived.query('sum(vla_inference_requests_total{status="success"})')[0]["value"][1]) > 0
    assert float(lived.query('sum(vla_safety_checks_total{passed="true"})')[0]["value"][1]) > 0
    assert float(lived.query("sum(vla_validation_failures_total)")[0]["value"][1]) > 0
    assert float(lived.query("sum(vla_inference_duration_seconds_count)")[0]["value"][1]) > 0
    assert lived.query("vla_queue_depth")
    assert lived.query("vla_deployment_lag")
    assert lived.query("vla_deployment_oldest_age_seconds")


@pytest.mark.parametrize(("dashboard", "panel"), _PANELS, ids=[f"{d.uid}: {p.title}" for d, p in _PANELS])
def test_a_panel_has_data_or_says_why_not(dashboard: Any, panel: Panel, stack: RunningStack, lived: Prometheus) -> None:
    for query in panel.queries:
        found = _rows(stack, query) if panel.source == "postgres" else lived.query(query.expr)
        assert found or panel.empty, query.expr


def _rows(stack: RunningStack, query: Query) -> list[tuple[Any, ...]]:
    with psycopg.connect(stack.file["database"]) as connection:
        return connection.execute(query.expr.encode()).fetchall()


def test_the_rules_are_evaluated_without_errors_and_nothing_critical_fires_on_a_sound_system(lived: Prometheus) -> None:
    rules = [rule for group in lived.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) >= 18
    _until(
        lambda: all(rule["lastEvaluation"] > "1" for group in lived.get("rules")["groups"] for rule in group["rules"]),
        "rules are not evaluated",
    )
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    firing = lived.query('ALERTS{alertstate="firing", severity="critical"}')
    assert not firing


def test_the_tests_of_the_alerts_pass() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml", "alerts_of_days_test.yml"],
        cwd=CONFIG,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
