"""How much of what the manifests of deploy/kubernetes run: scaled by lag, within what Kafka's partitions allow."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from deploy.kubernetes import check
from deploy.kubernetes.installation import FOLDER, Installation, load_installation
from deploy.kubernetes.scaling import MEAN_UNCOMMITTED_S, Cost, Scaling
from runtime.settings import Settings
from schemas.topics import accepted_topic, worker_group
from tests.kubernetes_case import (
    NAMES,
    container_of,
    env_file,
    environment,
    installation_of,
    of_kind,
    overlay_of,
    workloads,
)


@pytest.mark.parametrize("name", NAMES)
def test_every_deployment_of_the_cards_has_workers_that_are_scaled_by_its_own_lag(name: str) -> None:
    installation, cards = load_installation(overlay_of(name))
    scaled = of_kind(name, "ScaledObject")
    topics = of_kind(name, "KafkaTopic")
    for card in cards.models:
        worker = workloads(name)[f"gpu-{card.deployment}"]
        assert environment(name, worker)["DEPLOYMENT"] == card.deployment
        assert "replicas" not in worker["spec"], "KEDA's number would be set back at each apply"
        gpus = installation.deployments[card.deployment].gpus
        assert container_of(worker)["resources"]["limits"].get("nvidia.com/gpu", 0) == gpus
        assert environment(name, worker)["REQUIRE_GPU"] == ("true" if gpus else "false")
        spec = scaled[f"gpu-{card.deployment}"]["spec"]
        assert spec["scaleTargetRef"]["name"] == worker["metadata"]["name"]
        [trigger] = spec["triggers"]
        assert trigger["metadata"]["topic"] == accepted_topic(card.deployment)
        assert trigger["metadata"]["consumerGroup"] == worker_group(card.deployment)
        partitions = topics[accepted_topic(card.deployment)]["spec"]["partitions"]
        assert 1 <= spec["minReplicaCount"] <= spec["maxReplicaCount"] <= partitions // 2
        # What the API lets in at most must be enough to ask for all of them.
        admitted = (
            of_kind(name, "HorizontalPodAutoscaler")["api"]["spec"]["minReplicas"]
            * Settings.model_fields["inference_queue_max_size"].default
        )
        assert int(trigger["metadata"]["lagThreshold"]) * spec["maxReplicaCount"] <= admitted


@pytest.mark.parametrize("name", NAMES)
def test_every_scaled_object_has_a_target_and_a_way_to_ask_kafka(name: str) -> None:
    for scaled in of_kind(name, "ScaledObject").values():
        assert scaled["spec"]["scaleTargetRef"]["name"] in workloads(name)
        [trigger] = scaled["spec"]["triggers"]
        assert trigger["type"] == "kafka"
        assert trigger["authenticationRef"]["name"] in of_kind(name, "TriggerAuthentication")
        describes = {
            acl["resource"]["name"] for acl in of_kind(name, "KafkaUser")["keda"]["spec"]["authorization"]["acls"]
        }
        assert {trigger["metadata"]["topic"], trigger["metadata"]["consumerGroup"]} <= describes
        assert (
            trigger["metadata"]["bootstrapServers"]
            == env_file(FOLDER / "base" / "settings.env")["KAFKA_BOOTSTRAP_SERVERS"]
        )


@pytest.mark.parametrize("name", NAMES)
def test_there_are_partitions_for_every_gate_and_every_api_process(name: str) -> None:
    installation = installation_of(name)
    counts = {entry["name"]: entry["count"] for entry in check.kustomization(overlay_of(name)).get("replicas", ())}
    gates = counts.get("gate", workloads(name)["gate"]["spec"]["replicas"])
    assert gates == installation.partitions // 4
    assert of_kind(name, "HorizontalPodAutoscaler")["api"]["spec"]["maxReplicas"] == installation.reply_partitions


def test_the_threshold_is_the_lag_of_a_worker_at_its_planned_load() -> None:
    cost = Cost(per_item_s=0.0226, base_s=0.0496, source="")
    scaling = Scaling(deployment="x", cost=cost, largest_batch=16, ttl_s=2.0, partitions=32, min_replicas=2)
    # 16 / (16 x 22.6 ms + 49.6 ms) = 38.9 a second; by Little's law 70 % of them, each unfinished for 0.75 s.
    assert scaling.lag_threshold == round(0.7 * 38.91 * (0.5 + MEAN_UNCOMMITTED_S)) == 20
    assert scaling.max_replicas == 16


def test_more_workers_than_partitions_allow_are_refused_with_what_to_do() -> None:
    cost = Cost(per_item_s=0.01, base_s=0.01, source="")
    with pytest.raises(ValueError, match="raise accepted_partitions"):
        Scaling(deployment="x", cost=cost, largest_batch=1, ttl_s=2.0, partitions=2, min_replicas=2)


def test_an_installation_whose_cards_and_costs_differ_is_refused(tmp_path: Path) -> None:
    shutil.copytree(overlay_of("production"), tmp_path / "one")
    (tmp_path / "one" / "cards" / "models" / "pi0-droid.yaml").unlink()
    with pytest.raises(ValueError, match="pi0-droid"):
        load_installation(tmp_path / "one")


def test_a_deployment_whose_name_is_too_long_for_a_label_is_refused() -> None:
    known = yaml.safe_load((overlay_of("dev") / "installation.yaml").read_text())
    [worker] = known["deployments"].values()
    with pytest.raises(ValueError, match="63 characters"):
        Installation.model_validate({**known, "deployments": {"a" * 60: worker}})
