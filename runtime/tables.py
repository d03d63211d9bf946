"""The tables of the stream itself, as SQLAlchemy Core metadata; runtime.data_tables has the others.

`sinks/migrations` creates them; a test proves that both agree.
"""

from __future__ import annotations

from pgvector.sqlalchemy import Vector
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Numeric,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL

from schemas.embeddings import INSTRUCTION_EMBEDDING_DIM

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_name)s_key",
    }
)

_NOW = text("now()")

customers = Table(
    "customers",
    metadata,
    #: A fleet's customer is the fleet's own name.
    Column("id", Text, primary_key=True),
    Column("email", Text, nullable=False, unique=True),
    Column("tier", Text, nullable=False),
    #: Own limits, which go before those of the tier (schemas/tiers.py). Null: the tier's. Requests a minute and a day.
    Column("rpm_limit", Integer),
    Column("rpd_limit", Integer),
    #: Requests of a calendar month, UTC.
    Column("monthly_quota", BigInteger),
    #: Distinct robots of a UTC day.
    Column("max_robots", Integer),
    #: Of a REST body, and of a record on a fleet's topic.
    Column("max_payload_bytes", Integer),
    Column("is_active", Boolean, nullable=False, server_default=text("true")),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Uuid, primary_key=True, server_default=text("gen_random_uuid()")),
    Column("customer_id", Text, ForeignKey("customers.id", ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False, server_default=text("''")),
    #: The first characters of the key, to tell keys apart in a list.
    Column("prefix", Text, nullable=False),
    #: sha256 of the whole key, lower-case hex. The key itself is kept nowhere.
    Column("key_hash", Text, nullable=False, unique=True),
    Column("scopes", ARRAY(Text), nullable=False, server_default=text("'{inference,read,control,data,keys}'::text[]")),
    #: Requests a minute of this key alone, besides the customer's limit. Null: none.
    Column("rate_limit", Integer),
    Column("is_active", Boolean, nullable=False, server_default=text("true")),
    Column("expires_at", DateTime(timezone=True)),
    Column("last_used_at", DateTime(timezone=True)),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    Index("api_keys_by_customer", "customer_id"),
    Index("api_keys_by_prefix", "prefix"),
)

#: One row for each request that ended, however it ended.
inference_log = Table(
    "inference_log",
    metadata,
    #: row_id of the outcome: uuid5 of the request's identity and its record in the log.
    Column("id", Uuid, primary_key=True),
    #: Not unique: an id that is used again after the window is another request.
    Column("request_id", Text, nullable=False),
    Column("customer_id", Text, nullable=False),
    Column("robot_id", Text, nullable=False),
    Column("robot_type", Text, nullable=False),
    Column("model", Text, nullable=False),
    #: Null where the request never reached a worker.
    Column("deployment", Text),
    Column("model_revision", Text),
    Column("worker_id", Text),
    Column("batch_size", Integer),
    #: uint64, beyond what bigint holds.
    Column("seed", Numeric(20, 0)),
    #: Null where consent does not allow it.
    Column("instruction", Text),
    Column("instruction_category", Text),
    #: all-MiniLM-L6-v2, unit length; written by the embedder where consent allows it.
    Column("instruction_embedding", Vector(INSTRUCTION_EMBEDDING_DIM)),
    #: [height, width, 3] of the first image, pixels; null where it did not decode.
    Column("image_shape", ARRAY(Integer)),
    Column("image_count", Integer, nullable=False),
    Column("episode_id", Text),
    #: uint64, beyond what bigint holds.
    Column("step", Numeric(20, 0), nullable=False),
    #: First step of the chunk as delivered, in the units of the embodiment card.
    Column("action_vector", ARRAY(Double)),
    #: L2 norm of action_vector.
    Column("action_magnitude", Double),
    #: The whole chunk as delivered, row-major, action_horizon * action_dim values.
    Column("actions", ARRAY(REAL)),
    Column("action_horizon", Integer),
    Column("action_dim", Integer),
    #: 0..1, the minimum of the checks; null where no chunk was checked.
    Column("safety_score", Double),
    #: {"mode": ..., "modified": ..., "checks": {name: score}}
    Column("safety_flags", JSONB),
    #: success, safety_rejected, rejected, rate_limited, timeout, superseded or error.
    Column("status", Text, nullable=False),
    #: Refusal code of schemas/codes.py; null for success.
    Column("code", Text),
    Column("http_status", Integer, nullable=False),
    #: {field: reason} of what the gate refused; null where it refused nothing.
    Column("validation_errors", JSONB),
    #: From the broker's append time of the request to that of its completion.
    Column("latency_total_ms", Double, nullable=False),
    #: From arrival at the worker to the start of its batch.
    Column("latency_queue_ms", Double),
    #: Time of the batch on the device.
    Column("latency_gpu_ms", Double),
    Column("consent_tier", Text, nullable=False),
    Column("source_topic", Text, nullable=False),
    Column("source_partition", Integer, nullable=False),
    Column("source_offset", BigInteger, nullable=False),
    #: Offset of the completion in vla.results.v1; the partition has the number of outcome_partition.
    Column("results_offset", BigInteger, nullable=False),
    Column("outcome_partition", Integer, nullable=False),
    Column("outcome_offset", BigInteger, nullable=False),
    #: Broker's append time of the request.
    Column("created_at", DateTime(timezone=True), nullable=False),
    #: Broker's append time of the completion.
    Column("decided_at", DateTime(timezone=True), nullable=False),
    # Not named idx_inference_log_*: those names are the operator's, who may create them without IF NOT EXISTS.
    Index("inference_log_by_time", text("created_at DESC")),
    Index("inference_log_by_customer", "customer_id", text("created_at DESC")),
    Index("inference_log_by_request", "customer_id", "request_id"),
    Index("inference_log_by_robot", "customer_id", "robot_id", text("created_at DESC")),
)

#: One row for each chunk that was refused, clamped, or delivered below the minimum score in monitor mode.
safety_incidents = Table(
    "safety_incidents",
    metadata,
    #: The id of the inference_log row. No foreign key: incidents outlive the rows.
    Column("id", Uuid, primary_key=True),
    Column("request_id", Text, nullable=False),
    Column("customer_id", Text, nullable=False),
    Column("robot_id", Text, nullable=False),
    Column("robot_type", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("deployment", Text),
    Column("episode_id", Text),
    #: uint64, beyond what bigint holds.
    Column("step", Numeric(20, 0), nullable=False),
    #: low, medium, high or critical
    Column("severity", Text, nullable=False),
    #: Name of the worst check.
    Column("violation_type", Text, nullable=False),
    #: {"checks": {name: score}, "violations": [{"field", "reason", "detail"}]}
    Column("violation_details", JSONB, nullable=False),
    #: rejected, clamped, logged or emergency_stop
    Column("action_taken", Text, nullable=False),
    #: {"horizon", "dim", "values"} as the policy gave it; null where the outcome does not carry it.
    Column("original_action", JSONB),
    #: The same, as delivered instead of it; null where nothing was.
    Column("safe_action", JSONB),
    Column("safety_score", Double, nullable=False),
    #: lab, warehouse, factory, outdoor, home, office, hospital, retail or other; null: not stated.
    Column("environment_type", Text),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Index("safety_incidents_by_customer", "customer_id", text("created_at DESC")),
    Index("safety_incidents_by_severity", "severity", text("created_at DESC")),
)

#: How far a sink has written a partition, changed in the transaction of the rows themselves.
sink_marks = Table(
    "sink_marks",
    metadata,
    Column("sink", Text, primary_key=True),
    Column("topic", Text, primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    #: The first offset that is not written.
    Column("next_offset", BigInteger, nullable=False),
    #: Of outcomes: highest results_offset written; one that is not above it is a repeat. Of other topics, whose rows
    #: carry ids of their own: highest offset written. -1: none yet.
    Column("results_offset", BigInteger, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
)
