"""What the API counts of the requests that it answered. Labels come from cards and codes, never from callers."""

from __future__ import annotations

from runtime.metrics import Metrics
from schemas.cards import CardSet
from schemas.messages import Outcome, Rejection, SafetyReport, Stage

OTHER = "other"


class InferenceCounts:
    """The operator's counters for POST /v1/inference. The gate counts robots that produce to Kafka themselves."""

    def __init__(self, metrics: Metrics, cards: CardSet) -> None:
        self._metrics = metrics
        self._models = frozenset(card.model for card in cards.models)
        self._robot_types = frozenset(card.robot_type for card in cards.embodiments)

    def answered(self, model: str, robot_type: str, status: str, duration_s: float) -> None:
        """One request ended. status: success, a refusal code, or disconnected."""
        known_model = model if model in self._models else OTHER
        known_type = robot_type if robot_type in self._robot_types else OTHER
        self._metrics.inference_requests.labels(known_model, known_type, status).inc()
        self._metrics.inference_duration.labels(known_model).observe(duration_s)

    def refused_before_produce(self, code: str) -> None:
        self._metrics.refused_before_produce.labels(code).inc()

    def malformed(self, field: str, reason: str, known_fields: frozenset[str]) -> None:
        top = _top(field)
        self._metrics.validation_failures.labels(top if top in known_fields else OTHER, reason).inc()

    def outcome(self, outcome: Outcome) -> None:
        """Checks and refusals in a first answer; a replay was counted when it was new."""
        if outcome.HasField("chunk"):
            self._safety(outcome.request.model, outcome.chunk.safety, passed=True)
            return
        rejection = outcome.rejection
        if rejection.HasField("safety"):
            self._safety(outcome.request.model, rejection.safety, passed=False)
        if rejection.stage == Stage.STAGE_REQUEST_GATE:
            self._refusals(rejection)

    def _refusals(self, rejection: Rejection) -> None:
        for violation in rejection.violations:
            self._metrics.validation_failures.labels(_top(violation.field), violation.reason).inc()

    def _safety(self, model: str, report: SafetyReport, *, passed: bool) -> None:
        if not report.checks:
            return
        known_model = model if model in self._models else OTHER
        self._metrics.safety_checks.labels(known_model, str(passed).lower()).inc()
        if not passed:
            worst = min(report.checks, key=lambda name: report.checks[name])
            self._metrics.safety_rejections.labels(known_model, worst).inc()


def _top(field: str) -> str:
    """`images` of `images[0].data` and of `images.base`."""
    return field.partition(".")[0].partition("[")[0]
