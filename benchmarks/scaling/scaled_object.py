"""What a KEDA ScaledObject says, read from its YAML; fields that are left out have the defaults of KEDA and Kubernetes.

KEDA: https://keda.sh/docs/2.13/reference/scaledobject-spec/ and https://keda.sh/docs/2.13/scalers/apache-kafka/.
Kubernetes: https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/ (default behavior).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from benchmarks.devices import SimulatedDevice
from deploy.kubernetes.scaling import Cost, Scaling
from runtime.errors import Fatal

#: Where the ones that are installed on Kubernetes stand.
MANIFESTS = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class Policy(_Model):
    """By how much the number may change within a period."""

    type: Literal["Pods", "Percent"]
    value: int
    period_seconds: float


class Rules(_Model):
    """One direction of the autoscaler's behavior."""

    stabilization_window_seconds: float
    select_policy: Literal["Max", "Min", "Disabled"] = "Max"
    policies: tuple[Policy, ...]


_UP = Rules(
    stabilization_window_seconds=0,
    policies=(Policy(type="Percent", value=100, period_seconds=15), Policy(type="Pods", value=4, period_seconds=15)),
)
_DOWN = Rules(stabilization_window_seconds=300, policies=(Policy(type="Percent", value=100, period_seconds=15),))


class ScaledObject(_Model):
    """Seconds; lags are records. `lag_threshold`: for each replica. group and topic: what its trigger watches."""

    group: str
    topic: str
    lag_threshold: int = 10
    activation_lag_threshold: int = 0
    allow_idle_consumers: bool = False
    limit_to_partitions_with_lag: bool = False
    min_replica_count: int = 0
    max_replica_count: int = 100
    idle_replica_count: int | None = None
    polling_interval: float = 30
    cooldown_period: float = 300
    #: How often the autoscaler decides: --horizontal-pod-autoscaler-sync-period.
    sync_period: float = 15
    tolerance: float = 0.1
    up: Rules = Field(default=_UP)
    down: Rules = Field(default=_DOWN)

    @classmethod
    def of(cls, document: Any) -> ScaledObject:
        """From the manifest, by its first Kafka trigger. Raises Fatal where it has none."""
        spec = document["spec"]
        triggers = [trigger["metadata"] for trigger in spec["triggers"] if trigger["type"] == "kafka"]
        if not triggers:
            raise Fatal(f"the ScaledObject {document['metadata']['name']} has no trigger of type kafka")
        behavior = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior", {})
        rules = {
            name: Rules.model_validate(default.model_dump(by_alias=True) | behavior.get(key, {}))
            for name, key, default in (("up", "scaleUp", _UP), ("down", "scaleDown", _DOWN))
        }
        tolerance = behavior.get("scaleDown", {}).get("tolerance", 0.1)
        trigger = {key: value for key, value in triggers[0].items() if key != "consumerGroup"}
        return cls.model_validate(
            {**spec, **trigger, "group": triggers[0]["consumerGroup"], "tolerance": tolerance, **rules}
        )

    def faster(self, times: float) -> ScaledObject:
        """The same where every duration is shorter: what takes minutes on a cluster can be watched in a test."""

        def shorter(rules: Rules) -> Rules:
            policies = tuple(
                policy.model_copy(update={"period_seconds": policy.period_seconds / times}) for policy in rules.policies
            )
            window_s = rules.stabilization_window_seconds / times
            return rules.model_copy(update={"stabilization_window_seconds": window_s, "policies": policies})

        durations = {
            name: getattr(self, name) / times for name in ("polling_interval", "cooldown_period", "sync_period")
        }
        return self.model_copy(update={**durations, "up": shorter(self.up), "down": shorter(self.down)})


def scaled_objects(overlay: str) -> list[dict[str, Any]]:
    """Every ScaledObject of an overlay's manifests, as YAML says it."""
    documents = (MANIFESTS / "overlays" / overlay / "keda.yaml").read_text()
    return [document for document in yaml.safe_load_all(documents) if document]


def of_simulated(device: SimulatedDevice, *, partitions: int, ttl_s: float = 2.0) -> ScaledObject:
    """How production scales its first deployment, with the numbers that its rules give for another device.

    ttl_s: how long an observation is worth acting on. min 1, where production keeps one more against the loss of one.
    """
    cost = Cost(device.per_item_ms / 1000, device.base_ms / 1000, device.source)
    numbers = Scaling(
        deployment=device.name,
        cost=cost,
        largest_batch=max(device.batch_sizes),
        ttl_s=ttl_s,
        partitions=partitions,
        min_replicas=1,
    )
    return ScaledObject.of(scaled_objects("production")[0]).model_copy(
        update={
            "lag_threshold": numbers.lag_threshold,
            "min_replica_count": numbers.min_replicas,
            "max_replica_count": numbers.max_replicas,
        }
    )
