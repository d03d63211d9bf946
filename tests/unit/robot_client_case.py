"""Valid messages and a clock that only `sleep` moves, for the tests of robot_client and of the demo."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_client import ActionChunk, Observation, Safety
from schemas.messages import (
    ActionChunk as ActionChunkMessage,
)
from schemas.messages import (
    ActionMatrix,
    InferenceResult,
    Outcome,
    RequestSummary,
    SafetyMode,
    SafetyReport,
    StageTimes,
)

JPEG = b"\xff\xd8 only the marker matters here \xff\xd9"
NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")


class ManualClock:
    """Seconds that pass only while somebody sleeps or a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.pauses_s: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        self.now_s += seconds


def observation(**changes: Any) -> Observation:
    fields: dict[str, Any] = {
        "images": {"base": JPEG},
        "state": np.linspace(-1, 1, 8, dtype=np.float32),
        "instruction": "pick up the red block",
        "episode_id": "episode-1",
        "step": 4,
        "captured_at_ms": 1_700_000_000_000,
        **changes,
    }
    return Observation(**fields)


def actions(horizon: int = 8, dim: int = 7) -> NDArray[np.float32]:
    return np.linspace(0, 0.05, horizon * dim, dtype=np.float32).reshape(horizon, dim)


def chunk(**changes: Any) -> ActionChunk:
    fields: dict[str, Any] = {
        "actions": actions(),
        "names": NAMES,
        "units": ("m",) * 7,
        "control_rate_hz": 10.0,
        "safety": Safety(score=0.9, mode="reject", modified=False, checks={"range": 0.9}),
        "request_id": "r-1",
        "result_id": "u-1",
        "model": "pi0",
        "model_revision": "abc",
        "batch_size": 3,
        "timings_ms": {"request_gate": 1.0, "queue": 2.0, "inference": 12.0, "action_gate": 0.5},
        "round_trip_ms": 17.0,
        **changes,
    }
    return ActionChunk(**fields)


def reply_json(request_id: str = "r-1", **changes: Any) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "result_id": "u-1",
        "model": "pi0",
        "model_revision": "abc",
        "robot_id": "arm-1",
        "episode_id": "episode-1",
        "step": 4,
        "actions": {
            "horizon": 8,
            "dim": 7,
            "names": list(NAMES),
            "units": ["m"] * 7,
            "values": actions().tolist(),
        },
        "safety": {"score": 0.9, "mode": "reject", "modified": False, "checks": {"range": 0.9}},
        "timings_ms": {"total": 15.5, "request_gate": 1.0, "queue": 2.0, "inference": 12.0, "action_gate": 0.5},
        "batch_size": 3,
        "replayed": False,
        "expired": False,
        **changes,
    }


def outcome(request_id: str = "r-1") -> Outcome:
    values = actions()
    return Outcome(
        row_id="row-1",
        request=RequestSummary(request_id=request_id, robot_id="arm-1", model="pi0"),
        chunk=ActionChunkMessage(
            actions=ActionMatrix(horizon=8, dim=7, values=values.ravel().tolist()),
            names=NAMES,
            units=["m"] * 7,
            control_rate_hz=10.0,
            safety=SafetyReport(score=0.9, mode=SafetyMode.SAFETY_MODE_REJECT, checks={"range": 0.9}),
            result=InferenceResult(result_id="u-1", deployment="d", model_revision="abc", batch_size=3),
        ),
        times=StageTimes(
            gate_start_us=1_000,
            gate_end_us=2_000,
            infer_start_us=4_000,
            infer_end_us=16_000,
            action_gate_start_us=17_000,
            action_gate_end_us=17_500,
        ),
    )
