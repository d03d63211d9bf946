"""How many replicas KEDA and the HorizontalPodAutoscaler want for a lag. No I/O, no clock.

KEDA's Kafka scaler gives the autoscaler the total lag as an external metric with `lagThreshold` as its target average
value, cut at `partitions x lagThreshold`, and itself decides between none and some (pkg/scalers/kafka_scaler.go,
getTotalLag; https://keda.sh/docs/2.13/scalers/apache-kafka/). The autoscaler wants ceil(lag / threshold), keeps what it
has within the tolerance, takes the largest wish of the down window and the smallest of the up window, and moves no
faster than its policies (pkg/controller/podautoscaler/replica_calculator.go, GetExternalPerPodMetricReplicas, and
horizontal.go, normalizeDesiredReplicasWithBehaviors;
https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#algorithm-details).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from benchmarks.scaling.scaled_object import Policy, Rules, ScaledObject


class Autoscaler:
    """Remembers its wishes and changes for as long as its windows and policies ask. Times: seconds, never falling."""

    def __init__(self, spec: ScaledObject) -> None:
        self._spec = spec
        self._wishes: list[tuple[float, int]] = []
        #: When, and by how many replicas (negative: fewer).
        self._changes: list[tuple[float, int]] = []
        self._active_at_s = -math.inf

    def desired(self, now_s: float, lags: Sequence[int], replicas: int) -> int:
        """Replicas to have from now on.

        lags: records that each partition of the topic is behind. replicas: how many there are to be so far.
        """
        spec = self._spec
        if sum(lags) > spec.activation_lag_threshold:
            self._active_at_s = now_s
        idle = spec.idle_replica_count if spec.idle_replica_count is not None else spec.min_replica_count
        floor = max(spec.min_replica_count, 1)
        active = self._active_at_s == now_s
        if idle < floor:
            if not active and now_s - self._active_at_s >= spec.cooldown_period:
                return self._note(now_s, replicas, idle)
            if replicas <= idle:
                return self._note(now_s, replicas, floor if active else replicas)
        wish = wanted(spec, lags, replicas)
        stable = self._stabilized(now_s, wish, replicas)
        return self._note(now_s, replicas, self._limited(now_s, stable, replicas))

    def _stabilized(self, now_s: float, wish: int, replicas: int) -> int:
        up_s, down_s = self._spec.up.stabilization_window_seconds, self._spec.down.stabilization_window_seconds
        self._wishes = [(at_s, one) for at_s, one in self._wishes if now_s - at_s < max(up_s, down_s)]
        least = min([wish, *(one for at_s, one in self._wishes if now_s - at_s < up_s)])
        most = max([wish, *(one for at_s, one in self._wishes if now_s - at_s < down_s)])
        self._wishes.append((now_s, wish))
        return min(max(replicas, least), most)

    def _limited(self, now_s: float, wish: int, replicas: int) -> int:
        spec = self._spec
        if wish > replicas:
            fastest = self._bound(now_s, spec.up, replicas, _grown, {"Max": max, "Min": min})
            return min(wish, max(fastest, replicas), spec.max_replica_count)
        if wish < replicas:
            fastest = self._bound(now_s, spec.down, replicas, _shrunk, {"Max": min, "Min": max})
            return max(wish, min(fastest, replicas), max(spec.min_replica_count, 1))
        return min(max(wish, spec.min_replica_count, 1), spec.max_replica_count)

    def _bound(
        self,
        now_s: float,
        rules: Rules,
        replicas: int,
        moved: Callable[[int, Policy], int],
        select: dict[str, Callable[[list[int]], int]],
    ) -> int:
        """The number that the policies let through, from what there was when each one's period began."""
        if rules.select_policy == "Disabled":
            return replicas
        begun = {
            policy: replicas - sum(by for at_s, by in self._changes if now_s - at_s < policy.period_seconds)
            for policy in rules.policies
        }
        return select[rules.select_policy]([moved(start, policy) for policy, start in begun.items()])

    def _note(self, now_s: float, replicas: int, desired: int) -> int:
        if desired != replicas:
            self._changes.append((now_s, desired - replicas))
        longest_s = max(
            policy.period_seconds for rules in (self._spec.up, self._spec.down) for policy in rules.policies
        )
        self._changes = [(at_s, by) for at_s, by in self._changes if now_s - at_s < longest_s]
        return desired


def wanted(spec: ScaledObject, lags: Sequence[int], replicas: int) -> int:
    """The wish of one look, before windows, policies and bounds: ceil(lag / threshold), or what there is."""
    lag = metric(spec, lags)
    if replicas and abs(1 - lag / (spec.lag_threshold * replicas)) <= spec.tolerance:
        return replicas
    return math.ceil(lag / spec.lag_threshold)


def metric(spec: ScaledObject, lags: Sequence[int]) -> int:
    """The total lag as KEDA tells it: never more than a consumer for each partition would want."""
    lag = sum(lags)
    if spec.allow_idle_consumers and not spec.limit_to_partitions_with_lag:
        return lag
    most = sum(one > 0 for one in lags) if spec.limit_to_partitions_with_lag else len(lags)
    return most * spec.lag_threshold if lag // spec.lag_threshold > most else lag


def _grown(start: int, policy: Policy) -> int:
    return start + policy.value if policy.type == "Pods" else math.ceil(start * (1 + policy.value / 100))


def _shrunk(start: int, policy: Policy) -> int:
    return start - policy.value if policy.type == "Pods" else int(start * (1 - policy.value / 100))
