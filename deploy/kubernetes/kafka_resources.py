"""Topics and users for Strimzi, from schemas/topics.py and schemas/access.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from schemas.access import ADMIN_USER, Grant, Operation, Resource, all_grants, fleet_user
from schemas.quotas import Quota
from schemas.topics import OUTCOMES, POSTGRES_GROUP, Topic, accepted_topic, worker_group

#: Asks for lag and reads nothing.
KEDA_USER = "keda"
_API = "kafka.strimzi.io/v1"
_CLUSTER = {"strimzi.io/cluster": "vlastream"}
_OPERATIONS = {Operation.READ: "Read", Operation.WRITE: "Write", Operation.DESCRIBE: "Describe"}


def topic_resource(topic: Topic, replication: int) -> dict[str, Any]:
    """A KafkaTopic with exactly the configuration that `vlastream topics apply` would give the topic."""
    return {
        "apiVersion": _API,
        "kind": "KafkaTopic",
        "metadata": {"name": topic.name, "labels": _CLUSTER},
        "spec": {
            "partitions": topic.partitions,
            "replicas": replication,
            "config": {name: _number(value) for name, value in topic.broker_config().items()},
        },
    }


def user_resources(fleets: Mapping[str, Quota], deployments: Iterable[str]) -> list[dict[str, Any]]:
    """A KafkaUser for each role and fleet with its permissions, for the administrator and for KEDA.

    fleets: each with its quota.
    """
    quotas = {fleet_user(name): quota for name, quota in fleets.items()}
    named = list(deployments)
    by_user: dict[str, list[dict[str, Any]]] = {}
    for grant in all_grants(fleets, named):
        by_user.setdefault(grant.user, []).append(_acl(grant))
    by_user[KEDA_USER] = [
        *(_rule("topic", accepted_topic(name), "Describe") for name in named),
        *(_rule("group", worker_group(name), "Describe") for name in named),
        _rule("group", POSTGRES_GROUP, "Describe"),
        _rule("topic", OUTCOMES, "Describe"),
    ]
    # Above all permissions (the cluster's superUsers).
    by_user[ADMIN_USER] = []
    return [_user(name, acls, quotas.get(name)) for name, acls in by_user.items()]


def _user(name: str, acls: list[dict[str, Any]], quota: Quota | None) -> dict[str, Any]:
    spec: dict[str, Any] = {"authentication": {"type": "scram-sha-512"}}
    if acls:
        spec["authorization"] = {"type": "simple", "acls": acls}
    if quota is not None:
        spec["quotas"] = {
            "producerByteRate": round(quota.producer_bytes_per_s),
            "requestPercentage": round(quota.request_percent),
        }
    metadata = {"name": name, "labels": _CLUSTER}
    return {"apiVersion": _API, "kind": "KafkaUser", "metadata": metadata, "spec": spec}


def _acl(grant: Grant) -> dict[str, Any]:
    kind = "topic" if grant.resource is Resource.TOPIC else "group"
    return _rule(kind, grant.name, _OPERATIONS[grant.operation], "prefix" if grant.prefix else "literal")


def _rule(kind: str, name: str, operation: str, pattern: str = "literal") -> dict[str, Any]:
    return {"resource": {"type": kind, "name": name, "patternType": pattern}, "operations": [operation], "host": "*"}


def _number(value: str) -> str | int:
    """Whole numbers as such, as people write them."""
    return int(value) if value.removeprefix("-").isdigit() else value
