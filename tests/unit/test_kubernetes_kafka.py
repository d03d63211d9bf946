"""What the manifests ask of Kafka: topics, users and quotas as declared, and pods scaled within what it allows."""

from __future__ import annotations

import click
import pytest
import yaml

from deploy.kubernetes.installation import Installation
from deploy.kubernetes.kafka_resources import user_resources
from runtime.cli import main
from schemas.access import ADMIN_USER, all_grants, fleet_user
from tests.compose_case import compose, required_values
from tests.kubernetes_case import (
    NAMES,
    container_of,
    installation_of,
    of_kind,
    overlay_of,
)


@pytest.mark.parametrize("name", NAMES)
def test_strimzi_makes_the_topics_that_are_declared(name: str) -> None:
    found = of_kind(name, "KafkaTopic")
    installation = installation_of(name)
    declared = {topic.name: topic for topic in installation.topics()}
    assert set(found) == set(declared)
    for topic, resource in found.items():
        spec = resource["spec"]
        assert spec["partitions"] == declared[topic].partitions
        assert spec["replicas"] == installation.replication
        assert {key: str(value) for key, value in spec["config"].items()} == declared[topic].broker_config()


@pytest.mark.parametrize("name", NAMES)
def test_strimzi_gives_each_user_exactly_its_permissions(name: str) -> None:
    found = of_kind(name, "KafkaUser")
    installation = installation_of(name)
    wanted = {
        (g.user, str(g.operation), str(g.resource), g.name, "prefix" if g.prefix else "literal")
        for g in all_grants(installation.fleets, installation.deployments)
    }
    given = {
        (user, operation.lower(), acl["resource"]["type"], acl["resource"]["name"], acl["resource"]["patternType"])
        for user, resource in found.items()
        if user not in ("keda", ADMIN_USER)
        for acl in resource["spec"]["authorization"]["acls"]
        for operation in acl["operations"]
    }
    assert given == wanted
    assert {op for acl in found["keda"]["spec"]["authorization"]["acls"] for op in acl["operations"]} == {"Describe"}
    [kafka] = of_kind(name, "Kafka").values()
    assert kafka["spec"]["kafka"]["authorization"] == {"type": "simple", "superUsers": [ADMIN_USER]}


def test_a_fleet_gets_the_quota_that_fleets_add_would_set_unless_the_installation_says_another() -> None:
    known = yaml.safe_load((overlay_of("dev") / "installation.yaml").read_text())
    own = {"south": {"bytes_per_s": 5_000_000, "request_percent": 20}}
    installation = Installation.model_validate({**known, "fleets": ["north", "south"], "fleet_quotas": own})
    resources = user_resources(installation.quotas(), installation.deployments)
    quotas = {r["metadata"]["name"]: r["spec"]["quotas"] for r in resources if "quotas" in r["spec"]}
    fleets = main.commands["fleets"]
    assert isinstance(fleets, click.Group)
    set_by_command = {option.name: option.default for option in fleets.commands["add"].params}
    assert quotas == {
        "fleet.north": {
            "producerByteRate": set_by_command["bytes_per_s"],
            "requestPercentage": set_by_command["request_percent"],
        },
        "fleet.south": {"producerByteRate": 5_000_000, "requestPercentage": 20},
    }
    assert all(type(number) is int for quota in quotas.values() for number in quota.values()), "Strimzi takes integers"
    with pytest.raises(ValueError, match="west are not among the fleets"):
        Installation.model_validate({**known, "fleet_quotas": {"west": own["south"]}})


@pytest.mark.parametrize("name", NAMES)
def test_every_fleet_of_an_overlay_has_a_quota_and_no_role_has_one(name: str) -> None:
    having = {user for user, d in of_kind(name, "KafkaUser").items() if "quotas" in d["spec"]}
    assert having == {fleet_user(fleet) for fleet in installation_of(name).fleets}


def test_versions_of_servers_are_those_of_compose() -> None:
    services = compose(required_values())["services"]
    for name in NAMES:
        [kafka] = of_kind(name, "Kafka").values()
        assert services["kafka"]["image"] == f"apache/kafka:{kafka['spec']['kafka']['version']}"
    servers = {d["metadata"]["name"]: container_of(d)["image"] for d in of_kind("dev", "Deployment").values()}
    for server in ("postgres", "valkey", "s3"):
        assert servers[server] == services[server]["image"]
