"""Arrow schemas of the lake's datasets. Every field says its unit, shape and range in its metadata `doc`.

All are laid out as `<dataset>/date=YYYY-MM-DD/*.parquet`, where the date is that of the broker's append time
in UTC. A field may be added; none is renamed, removed or given another type.
"""

from __future__ import annotations

import pyarrow as pa

OBSERVATIONS = "observations"
OUTCOMES_DATASET = "outcomes"
FEEDBACK_DATASET = "feedback"
EPISODES_DATASET = "episodes"


def _field(name: str, kind: pa.DataType, doc: str, *, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"doc": doc})


def _required(name: str, kind: pa.DataType, doc: str) -> pa.Field:
    return _field(name, kind, doc, nullable=False)


_TIME = pa.timestamp("ms", tz="UTC")

_IDENTITY = [
    _required("row_id", pa.string(), "UUID; joins observations, outcomes and inference_log.id"),
    _required("request_id", pa.string(), "UUID as the robot chose it"),
    _required("customer_id", pa.string(), "whose robot it is"),
    _required("robot_id", pa.string(), "1..64 characters"),
    _required("robot_type", pa.string(), "robot_type of an embodiment card"),
    _required("model", pa.string(), "model name of the request"),
    _required("episode_id", pa.string(), "empty: none"),
    _required("step", pa.uint64(), "control step within the episode, counted by the robot"),
    _required("consent_tier", pa.string(), "none, metadata or full"),
    _required("requested_at", _TIME, "broker's append time of the request"),
    _required("captured_at_ms", pa.int64(), "robot's clock, Unix epoch in ms; not trusted"),
    _required("source_topic", pa.string(), "topic of the request record"),
    _required("source_partition", pa.int32(), "partition of the request record"),
    _required("source_offset", pa.int64(), "offset of the request record"),
    _required("log_partition", pa.int32(), "partition of the record that this row was made from"),
    _required("log_offset", pa.int64(), "offset of the record that this row was made from"),
]

_EXECUTED = [
    _field("executed", pa.list_(pa.float32()), "what the robot did since its last request: (horizon * dim), row-major"),
    _field("executed_horizon", pa.uint32(), "steps in `executed`"),
    _field("executed_dim", pa.uint32(), "values per step in `executed`"),
]

_IMAGE = [
    _required("camera", pa.string(), "name as in the model card"),
    _required("encoding", pa.string(), "jpeg, png or rgb8 (height * width * 3 bytes, row-major)"),
    _required("width", pa.uint32(), "pixels; 0: as in the image's header"),
    _required("height", pa.uint32(), "pixels; 0: as in the image's header"),
]

observations = pa.schema(
    [
        *_IDENTITY,
        _required("deployment", pa.string(), "deployment that the gate chose"),
        _required("instruction", pa.string(), "natural language, 3..500 characters"),
        _required("state", pa.list_(pa.float32()), "proprioceptive state (state_dim), units of the embodiment card"),
        _required(
            "images",
            pa.list_(
                pa.struct(
                    [
                        *_IMAGE,
                        _field("data", pa.binary(), "encoded image; null for a claim, and without full consent"),
                        _field("claim_uri", pa.string(), "object that holds the image; null: inline"),
                        _field("claim_sha256", pa.binary(), "32 bytes over that object"),
                        _field("claim_bytes", pa.uint64(), "size of that object in bytes"),
                    ]
                )
            ),
            "one for each camera, in the order of the request",
        ),
        *_EXECUTED,
        _field("seed", pa.uint64(), "noise seed that the request named; null: derived from its id"),
    ]
)

outcomes = pa.schema(
    [
        *_IDENTITY,
        _required(
            "status", pa.string(), "success, safety_rejected, rejected, rate_limited, timeout, superseded, error"
        ),
        _field("code", pa.string(), "refusal code; null for success"),
        _required("http_status", pa.int32(), "status that REST answers with"),
        _field("validation_errors", pa.map_(pa.string(), pa.string()), "field -> reason; null where none"),
        _required("decided_at", _TIME, "broker's append time of the completion"),
        _required("results_offset", pa.int64(), "offset of the completion in vla.results.v1, same partition number"),
        _field("deployment", pa.string(), "null where no worker answered"),
        _field("model_revision", pa.string(), "hash of the weights"),
        _field("worker_id", pa.string(), "process that computed the chunk"),
        _field("batch_size", pa.uint32(), "requests in its batch"),
        _field("seed", pa.uint64(), "noise seed that was used"),
        _field("actions", pa.list_(pa.float32()), "chunk as delivered (horizon * dim), row-major, in action_units"),
        _field("action_horizon", pa.uint32(), "steps in `actions`"),
        _field("action_dim", pa.uint32(), "values per step in `actions`"),
        _field("action_names", pa.list_(pa.string()), "(action_dim)"),
        _field("action_units", pa.list_(pa.string()), "(action_dim)"),
        _field("control_rate_hz", pa.float64(), "steps per second"),
        _field(
            "policy_actions", pa.list_(pa.float32()), "the policy's own chunk where the gate clamped it, same shape"
        ),
        _field("safety_score", pa.float64(), "0..1, the minimum of safety_checks; null where nothing was checked"),
        _field("safety_mode", pa.string(), "reject, clamp or monitor"),
        _field("safety_modified", pa.bool_(), "whether the gate clamped the chunk"),
        _field("safety_checks", pa.map_(pa.string(), pa.float64()), "check -> 0..1"),
        _required("latency_total_ms", pa.float64(), "append of the request to append of its completion"),
        _field("latency_queue_ms", pa.float64(), "arrival at the worker to the start of the batch"),
        _field("latency_gpu_ms", pa.float64(), "batch on the device"),
        _field("instruction", pa.string(), "null without consent"),
        _field("state", pa.list_(pa.float32()), "(state_dim); null without consent"),
        *_EXECUTED,
    ]
)

_PLACE = [
    _required("customer_id", pa.string(), "whose robot it is; its keyed hash where ids are anonymized"),
    _required("robot_id", pa.string(), "as above"),
    _required("at", _TIME, "broker's append time of the record"),
    _required("log_partition", pa.int32(), "partition of the record that this row was made from"),
    _required("log_offset", pa.int64(), "offset of the record that this row was made from"),
]

feedback = pa.schema(
    [
        _required("feedback_id", pa.string(), "UUID; the same id again is a repeat"),
        _required("row_id", pa.string(), "UUID; joins outcomes and observations"),
        _required("request_id", pa.string(), "of the request that it is about"),
        *_PLACE,
        _required("kind", pa.string(), "success_rating, safety_rating, action_correction or failure_report"),
        _field("success", pa.bool_(), "whether the robot did what it should; null: not said"),
        _field("rating", pa.uint8(), "1..5, 5 is best; null: none"),
        _field("corrected", pa.list_(pa.float32()), "what should have been done: (horizon * dim), row-major"),
        _field("corrected_horizon", pa.uint32(), "steps in `corrected`"),
        _field("corrected_dim", pa.uint32(), "values per step in `corrected`"),
        _field("failure_type", pa.string(), "short code; null: none"),
        _field("comment", pa.string(), "anonymized; null: none"),
    ]
)

episodes = pa.schema(
    [
        *_PLACE,
        _required("episode_id", pa.string(), "joins observations and outcomes, with customer_id and robot_id"),
        _required("robot_type", pa.string(), "empty: not said"),
        _required("event", pa.string(), "start or end"),
        _field("success", pa.bool_(), "of an end: whether the task was done; null: not judged"),
        _field("task", pa.string(), "what was to be done, anonymized"),
        _field(
            "environment_type", pa.string(), "lab, warehouse, factory, outdoor, home, office, hospital, retail, other"
        ),
    ]
)

SCHEMAS: dict[str, pa.Schema] = {
    OBSERVATIONS: observations,
    OUTCOMES_DATASET: outcomes,
    FEEDBACK_DATASET: feedback,
    EPISODES_DATASET: episodes,
}
