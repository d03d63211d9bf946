"""All routes beside /v1/inference."""

from __future__ import annotations

import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ingest_api.health import Dependency
from runtime.errors import Unavailable
from schemas.messages import BatchCount, Traffic, TrafficShare
from tests.unit.api_case import Api, sandbox
from tests.unit.api_stand_ins import CUSTOMER, KEY
from tests.unit.test_api_inference import assert_problem

STILL = {"robot_type": "test_arm", "actions": [[0.0, 0.0, 0.0], [0.01, 0.0, 0.0]]}


async def get(api: Api, path: str, key: str | None = None) -> Any:
    async with api.client(key) as client:
        return await client.get(path)


async def evaluate(body: Any, key: str | None = KEY) -> Any:
    async with Api().client(key) as client:
        return await client.post("/v1/safety/evaluate", json=body)


async def test_the_index_names_paths_that_exist() -> None:
    api = Api()
    document = (await get(api, "/")).json()
    assert document["name"] == "vlastream"
    assert document["version"]
    for path in document["links"].values():
        assert (await get(api, path, KEY)).status_code in (200, 303, 400, 405, 503), path


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/inference/", "/livez/"])
async def test_what_is_not_there_is_a_problem(path: str) -> None:
    assert_problem(await get(Api(), path), 404, "not_found")


async def test_a_wrong_method_is_a_problem_that_names_the_right_one() -> None:
    answer = await get(Api(), "/v1/inference")
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


async def test_ready_is_what_the_gateway_says_and_alive_is_alive() -> None:
    api = Api()
    assert (await get(api, "/readyz")).status_code == 200
    api.gateway.waiting_for = ["reply path"]
    answer = await get(api, "/readyz")
    assert (answer.status_code, answer.json()["waiting_for"]) == (503, ["reply path"])
    assert (await get(api, "/livez")).status_code == 200


def _answers() -> None:
    return


def _is_away() -> None:
    raise Unavailable("postgres://user:secret@host is away")


@pytest.mark.parametrize(
    ("kafka", "postgres", "status", "word"),
    [(_answers, _answers, 200, "ok"), (_answers, _is_away, 200, "degraded"), (_is_away, _answers, 503, "down")],
)
async def test_health_tells_each_server_and_what_is_lost(kafka: Any, postgres: Any, status: int, word: str) -> None:
    dependencies = {
        "kafka": Dependency(kafka, vital=True, without="nothing works"),
        "postgres": Dependency(postgres, vital=False, without="no history"),
    }
    api = Api(dependencies=dependencies)
    answer = await get(api, "/health")
    document = answer.json()
    assert (answer.status_code, document["status"]) == (status, word)
    assert set(document["dependencies"]) == {"kafka", "postgres", "workers", "consumers"}
    for name, probe in (("kafka", kafka), ("postgres", postgres)):
        entry = document["dependencies"][name]
        assert (entry["status"] == "ok") == (probe is _answers)
        assert (entry["latency_ms"] is None) == (probe is _is_away)
        assert api.count("vla_dependency_up", server=name) == (probe is _answers)
    assert "secret" not in answer.text


async def test_health_without_workers_is_down() -> None:
    api = Api()
    api.worker_leaves()
    answer = await get(api, "/health")
    assert answer.status_code == 503
    assert answer.json()["dependencies"]["workers"] == {
        "status": "down",
        "live": {"test-model-a": 0},
        "detail": "no live worker: test-model-a",
    }


async def test_models_come_with_their_cards_and_live_workers() -> None:
    api = Api()
    (model,) = (await get(api, "/v1/models")).json()["models"]
    assert (model["model"], model["default"], model["available"]) == ("test-model", True, True)
    assert model["deployments"][0]["live_workers"] == 1
    assert model["embodiments"][0]["robot_type"] == "test_arm"
    assert model == (await get(api, "/v1/models/test-model")).json()
    api.worker_leaves()
    assert (await get(api, "/v1/models/test-model")).json()["available"] is False
    assert_problem(await get(api, "/v1/models/pi9"), 404, "unknown_model")


async def test_gpus_are_those_of_the_heartbeats_and_none_is_made_up() -> None:
    api = Api()
    document = (await get(api, "/v1/monitoring/gpu")).json()
    assert (document["gpus"], document["count"], document["cpu_workers"]) == ([], 0, 1)
    assert "vla_gpu_utilization_percent{" not in (await get(api, "/metrics")).text
    api.beat(
        worker_id="w-2", device="cuda:0", gpu_memory_total_bytes=1000, gpu_memory_used_bytes=250, gpu_utilization=40
    )
    (gpu,) = (await get(api, "/v1/monitoring/gpu")).json()["gpus"]
    assert (gpu["worker_id"], gpu["memory_utilization_percent"], gpu["utilization_percent"]) == ("w-2", 25, 40)
    await get(api, "/metrics")
    assert api.count("vla_gpu_memory_utilization_percent", worker="w-2", device="cuda:0") == 25
    assert api.count("vla_workers_live", deployment="test-model-a") == 2
    api.worker_leaves("w-2")
    assert "vla_gpu_utilization_percent{" not in (await get(api, "/metrics")).text


async def test_a_gpu_without_readings_is_a_gpu_whose_figures_are_not_known() -> None:
    api = Api()
    api.beat(worker_id="w-2", device="cuda:0", device_name="H100", host="gpu-7")
    api.beat(worker_id="w-3", device="remote")
    document = (await get(api, "/v1/monitoring/gpu")).json()
    (gpu,) = document["gpus"]
    assert (gpu["host"], gpu["name"], gpu["utilization_percent"], gpu["memory_used_bytes"]) == (
        "gpu-7",
        "H100",
        None,
        None,
    )
    assert (document["count"], document["cpu_workers"], document["remote_workers"]) == (1, 1, 1)
    assert "vla_gpu_utilization_percent{" not in (await get(api, "/metrics")).text


async def test_heat_power_and_what_slows_a_gpu_down_are_told_of_all_hosts() -> None:
    api = Api()
    for host in ("gpu-7", "gpu-8"):
        api.beat(
            worker_id=f"w-{host}", host=host, device="cuda:0", gpu_uuid=f"GPU-{host}", gpu_memory_total_bytes=100,
            gpu_temperature_celsius=71, gpu_power_watts=400, gpu_throttle_reasons=["hw_thermal"],
            gpu_memory_per_inference_bytes=5,
        )  # fmt: skip
    document = (await get(api, "/v1/monitoring/gpu")).json()
    assert document["hosts"] == ["gpu-7", "gpu-8"]
    assert [gpu["uuid"] for gpu in document["gpus"]] == ["GPU-gpu-7", "GPU-gpu-8"]
    for gpu in document["gpus"]:
        assert (gpu["temperature_celsius"], gpu["power_watts"], gpu["throttled_by"]) == (71, 400, ["hw_thermal"])
        assert gpu["memory_per_inference_bytes"] == 5
    await get(api, "/metrics")
    assert api.count("vla_gpu_throttled", worker="w-gpu-8", device="cuda:0", reason="hw_thermal") == 1
    assert api.count("vla_gpu_temperature_celsius", worker="w-gpu-7", device="cuda:0") == 71


async def test_a_model_tells_how_its_robots_are_dealt() -> None:
    api = Api()
    before = (await get(api, "/v1/models/test-model")).json()
    assert (before["traffic_changed_at_ms"], before["deployments"][0]["share"]) == (None, 1.0)
    record = Traffic(model="test-model", shares=[TrafficShare(deployment="test-model-a", weight=3)], at_ms=12)
    api.traffic.update(b"test-model", record.SerializeToString(), 0)
    after = (await get(api, "/v1/models/test-model")).json()
    assert (after["traffic_changed_at_ms"], after["deployments"][0]["traffic"]) == (12, 3.0)


async def test_what_is_loaded_where_and_how_it_does_comes_from_the_heartbeats() -> None:
    api = Api()
    api.beat(
        host="h1", model_revision="abc", completed_total=10, refused_total=2, latency_p50_s=0.1, latency_p95_s=0.3,
        batches=[BatchCount(size=1, count=2), BatchCount(size=4, count=2)],
    )  # fmt: skip
    api.beat(worker_id="w-2", completed_total=5, latency_p50_s=0.2, batches=[BatchCount(size=4, count=4)])
    loaded = (await get(api, "/v1/models/test-model/load")).json()
    assert loaded["loaded"] is True
    first = loaded["deployments"][0]["workers"][0]
    assert (first["host"], first["revision"], first["device"], first["ready"]) == ("h1", "abc", "cpu", True)
    stats = (await get(api, "/v1/models/test-model/stats")).json()
    (deployment,) = stats["deployments"]
    assert (stats["requests"], stats["refused"]) == (15, 2)
    assert deployment["batch_sizes"] == {"1": 2, "4": 6}
    assert deployment["mean_batch_size"] == 26 / 8
    assert (deployment["latency_p50_s"], deployment["latency_p95_s"]) == (0.2, 0.3)
    for worker in ("w-1", "w-2"):
        api.worker_leaves(worker)
    assert (await get(api, "/v1/models/test-model/load")).json()["loaded"] is False
    (idle,) = (await get(api, "/v1/models/test-model/stats")).json()["deployments"]
    assert (idle["requests"], idle["latency_p50_s"], idle["mean_batch_size"]) == (0, None, None)
    for part in ("load", "stats"):
        assert_problem(await get(api, f"/v1/models/pi9/{part}"), 404, "unknown_model")


async def test_a_deployment_that_gets_no_robots_needs_no_worker_to_be_healthy() -> None:
    api = Api()
    api.worker_leaves()
    record = Traffic(model="test-model", shares=[TrafficShare(deployment="other", weight=1)])
    api.traffic.update(b"test-model", record.SerializeToString(), 0)
    assert (await get(api, "/health")).json()["dependencies"]["workers"]["detail"] == ""


async def test_metrics_can_be_switched_off(tmp_path: Path) -> None:
    api = Api(settings=sandbox(tmp_path, enable_prometheus=False))
    assert (await get(api, "/metrics")).status_code == 404
    assert (await get(api, "/v1/monitoring/gpu")).status_code == 200


async def test_queues_add_up_over_workers() -> None:
    api = Api()
    api.beat(queue_depth=3, in_flight=2)
    api.beat(worker_id="w-2", queue_depth=4)
    document = (await get(api, "/v1/monitoring/queue")).json()
    assert document["queue_depth"] == 7
    assert document["deployments"][0]["in_flight"] == 2
    await get(api, "/metrics")
    assert api.count("vla_queue_depth", deployment="test-model-a") == 7


async def test_a_queue_tells_lag_age_throughput_and_how_long_a_request_would_wait() -> None:
    api = Api()
    api.beat(queue_depth=3, max_batch=4, cost_per_item_s=0.1, cost_base_s=0.1)
    (before,) = (await get(api, "/v1/monitoring/queue")).json()["deployments"]
    assert (before["lag"], before["oldest_age_s"], before["throughput_per_s"]) == (None, None, None)
    topic, group = "vla.accepted.test-model-a.v1", "gpu.test-model-a"
    api.offsets.logs[topic] = (0, 30)
    api.offsets.commits[group, topic] = 6
    api.offsets.appended[topic, 6] = 991_500
    api.group_lag.look()
    api.offsets.clock.now_s += 2
    api.offsets.commits[group, topic] = 14
    api.offsets.appended[topic, 14] = 996_000
    api.group_lag.look()
    document = (await get(api, "/v1/monitoring/queue")).json()
    (queue,) = document["deployments"]
    assert (queue["lag"], queue["oldest_age_s"], queue["throughput_per_s"]) == (16, 4.0, 4.0)
    # 4 requests take 0.5 s, so 8 are served a second.
    assert (queue["capacity_per_s"], queue["estimated_wait_s"]) == (8.0, 2.0)
    assert document["consumer_groups"][group]["lag"] == 16
    assert api.count("vla_deployment_lag", deployment="test-model-a") == 16
    assert api.count("vla_deployment_oldest_age_seconds", deployment="test-model-a") == 4.0


async def test_health_is_degraded_by_consumers_that_are_late_and_not_by_a_broker_that_did_not_tell() -> None:
    api = Api()
    consumers = (await get(api, "/health")).json()["dependencies"]["consumers"]
    assert (consumers["status"], consumers["lag"]) == ("unknown", {})
    api.offsets.logs["vla.outcomes.v1"] = (0, 10)
    api.offsets.appended["vla.outcomes.v1", 0] = 900_000
    api.group_lag.look()
    document = (await get(api, "/health")).json()
    assert document["status"] == "degraded"
    assert document["dependencies"]["consumers"]["detail"] == "late by more than 60 s: sink-postgres, sink-parquet"
    api.offsets.away = True
    api.group_lag.look()
    api.offsets.clock.now_s += 31
    assert (await get(api, "/health")).json()["dependencies"]["consumers"]["status"] == "unknown"


async def test_metrics_name_the_checklist() -> None:
    text = (await get(Api(), "/metrics")).text
    for name in (
        "vla_inference_requests_total", "vla_inference_duration_seconds", "vla_gpu_utilization_percent",
        "vla_gpu_memory_used_bytes", "vla_gpu_memory_utilization_percent", "vla_safety_checks_total",
        "vla_safety_rejections_total", "vla_validation_failures_total", "vla_queue_depth",
    ):  # fmt: skip
        assert f"# TYPE {name} " in text


async def test_history_is_of_the_own_customer_alone() -> None:
    api = Api()
    mine, theirs = str(uuid.uuid4()), str(uuid.uuid4())
    api.history.rows[CUSTOMER, mine] = [{"request_id": mine, "status": "success", "step": Decimal(2**63)}]
    api.history.rows["somebody else", theirs] = [{"request_id": theirs}]
    document = (await get(api, f"/v1/inferences/{mine}", KEY)).json()
    assert document["inferences"] == [{"request_id": mine, "status": "success", "step": 2**63}]
    assert_problem(await get(api, f"/v1/inferences/{theirs}", KEY), 404, "not_found")
    assert_problem(await get(api, "/v1/inferences/%00", KEY), 404, "not_found")
    assert_problem(await get(api, f"/v1/inferences/{mine}"), 401, "unauthenticated")


async def test_history_without_postgres_is_503() -> None:
    api = Api()
    api.history.away = True
    answer = await get(api, f"/v1/inferences/{uuid.uuid4()}", KEY)
    assert_problem(answer, 503, "unavailable")
    assert "retry-after" in answer.headers


async def test_actions_within_limits_pass() -> None:
    answer = await evaluate({**STILL, "state": [0.5, 0.5], "mode": "reject"})
    assert answer.status_code == 200
    document = answer.json()
    assert document["passed"] is True
    assert document["safety"]["score"] == 1
    assert document["actions"] == [[0.0, 0.0, 0.0], [0.01, 0.0, 0.0]]


async def test_an_action_above_its_range_is_422_with_the_report() -> None:
    answer = await evaluate({"robot_type": "test_arm", "action": [1.5, 0.0, 0.0], "mode": "reject"})
    document = assert_problem(answer, 422, "unsafe_action")
    assert document["safety"]["checks"]["range"] < 0.7
    assert {"field": "actions[0].dx", "reason": "out_of_range"}.items() <= document["violations"][0].items()


async def test_clamp_brings_actions_into_limits_and_monitor_only_tells() -> None:
    over = {"robot_type": "test_arm", "action": [1.5, 0.0, 0.0]}
    clamped = (await evaluate({**over, "mode": "clamp"})).json()
    assert clamped["safety"]["modified"] is True
    assert clamped["actions"][0][0] == pytest.approx(0.08)
    monitored = (await evaluate({**over, "mode": "monitor"})).json()
    assert monitored["safety"]["score"] < 0.7
    assert monitored["actions"] == [[1.5, 0.0, 0.0]]


async def test_nan_is_unsafe_in_every_mode() -> None:
    async with Api().client() as client:
        for mode in ("reject", "clamp", "monitor"):
            content = f'{{"robot_type": "test_arm", "action": [NaN, 0, 0], "mode": "{mode}"}}'
            answer = await client.post("/v1/safety/evaluate", content=content)
            assert_problem(answer, 422, "unsafe_action")


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"robot_type": "test_amr"}, 422, "invalid_robot_type"),
        ({"state": [0.5]}, 422, "invalid_state"),
        ({"state": [0.5, 1e39]}, 422, "invalid_state"),
        ({"actions": [[0.0, 0.0]]}, 422, "unsafe_action"),
        ({"actions": [[0.0, 0.0, 0.0], [0.0]]}, 400, "malformed"),
        ({"actions": []}, 400, "malformed"),
        ({"action": [0.0, 0.0, 0.0]}, 400, "malformed"),
        ({"actions": None}, 400, "malformed"),
        ({"mode": "off"}, 400, "malformed"),
        ({"speed": 1}, 400, "malformed"),
    ],
)
async def test_what_cannot_be_evaluated_is_told(changes: dict[str, Any], status: int, code: str) -> None:
    document = assert_problem(await evaluate({**STILL, **changes}), status, code)
    if code == "invalid_robot_type":
        assert "test_arm" in document["detail"]


async def test_evaluation_wants_a_key() -> None:
    assert_problem(await evaluate(STILL, key=None), 401, "unauthenticated")


async def test_openapi_names_bodies_problems_and_the_key() -> None:
    api = Api()
    document = (await get(api, "/openapi.json")).json()
    schemas = document["components"]["schemas"]
    post = document["paths"]["/v1/inference"]["post"]
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert post["security"] == [{"bearer": ["inference"]}]
    assert {"400", "401", "404", "413", "422", "503", "504"} <= post["responses"].keys()
    for reference in _references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas
    assert (await get(api, "/docs")).status_code == 200


async def test_the_example_of_the_safety_route_runs() -> None:
    api = Api()
    document = (await get(api, "/openapi.json")).json()
    content = document["paths"]["/v1/safety/evaluate"]["post"]["requestBody"]["content"]["application/json"]
    assert (await evaluate(content["example"])).status_code == 200


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [reference for value in node.values() for reference in _references(value)]
    return [reference for value in node for reference in _references(value)] if isinstance(node, list) else []
