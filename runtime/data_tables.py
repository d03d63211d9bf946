"""The tables of what is made from the stream for people: analytics, consent, episodes, feedback. See runtime.tables."""

from __future__ import annotations

from pgvector.sqlalchemy import Vector
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Double,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from runtime.tables import metadata
from schemas.embeddings import IMAGE_EMBEDDING_DIM, INSTRUCTION_EMBEDDING_DIM

_NOW = text("now()")


def _nearest(name: str, column: str) -> Index:
    """HNSW by cosine distance (Malkov and Yashunin 2016). m and ef_construction are pgvector's own defaults."""
    return Index(
        name,
        column,
        postgresql_using="hnsw",
        postgresql_with={"m": 16, "ef_construction": 64},
        postgresql_ops={column: "vector_cosine_ops"},
    )


#: How well the robots of one type did with one model on one UTC day. Written by the ETL.
robot_performance_metrics = Table(
    "robot_performance_metrics",
    metadata,
    Column("id", Uuid, primary_key=True, server_default=text("gen_random_uuid()")),
    Column("customer_id", Text, nullable=False),
    Column("robot_type", Text, nullable=False),
    Column("model", Text, nullable=False),
    #: UTC day of the broker's append time of the requests.
    Column("date", Date, nullable=False),
    Column("total_inferences", BigInteger, nullable=False),
    Column("successful_inferences", BigInteger, nullable=False),
    Column("failed_inferences", BigInteger, nullable=False),
    Column("safety_rejections", BigInteger, nullable=False),
    #: 0..1: successful_inferences / total_inferences.
    Column("success_rate", Double, nullable=False),
    #: 0..1: share of the judged episodes and success feedback that succeeded; null where nothing was judged.
    Column("task_success_rate", Double),
    #: Judged episodes and success feedback together.
    Column("tasks_judged", BigInteger, nullable=False),
    #: Of requests that brought actions; null without one.
    Column("avg_latency_ms", Double),
    Column("p50_latency_ms", Double),
    Column("p95_latency_ms", Double),
    Column("p99_latency_ms", Double),
    Column("avg_safety_score", Double),
    #: {"names", "mean", "std", "min", "max"}: lists of one entry per dimension; null without actions.
    Column("action_statistics", JSONB),
    #: [{"instruction", "count"}], of consented requests only.
    Column("top_instructions", JSONB, nullable=False),
    #: {code: count}
    Column("failure_patterns", JSONB, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    UniqueConstraint(
        "customer_id", "robot_type", "model", "date", name="robot_performance_metrics_customer_type_model_date_key"
    ),
    Index("robot_performance_metrics_by_date", text("date DESC")),
)

#: One row for each instruction that consented requests used, by the hash of its normalised text. Begun by the
#: sink as embeddings come, put right by the ETL.
instruction_analytics = Table(
    "instruction_analytics",
    metadata,
    Column("id", Uuid, primary_key=True, server_default=text("gen_random_uuid()")),
    #: sha256 of the normalised text (lower case, trimmed, no punctuation), lower-case hex.
    Column("instruction_hash", Text, nullable=False, unique=True),
    #: One of the texts that have this hash, anonymized.
    Column("instruction", Text, nullable=False),
    Column("category", Text, nullable=False),
    #: all-MiniLM-L6-v2, unit length; null until the embedder has seen one.
    Column("instruction_embedding", Vector(INSTRUCTION_EMBEDDING_DIM)),
    #: An earlier instruction with cosine similarity above 0.95; null: none.
    Column("similar_to", Text),
    Column("is_duplicate", Boolean, nullable=False, server_default=text("false")),
    Column("total_uses", BigInteger, nullable=False),
    Column("unique_customers", Integer, nullable=False),
    #: Who used it, for erasing and for showing a customer only its own.
    Column("customers", ARRAY(Text), nullable=False),
    Column("success_rate", Double),
    Column("avg_safety_score", Double),
    Column("avg_latency_ms", Double),
    #: {robot_type: uses}
    Column("common_robots", JSONB, nullable=False),
    Column("first_seen", DateTime(timezone=True), nullable=False),
    Column("last_seen", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    _nearest("instruction_analytics_by_embedding", "instruction_embedding"),
    Index("instruction_analytics_by_customer", "customers", postgresql_using="gin"),
)

#: The surroundings of one inference, only where consent allows them. Begun by the sink from the embedding's record.
context_metadata = Table(
    "context_metadata",
    metadata,
    #: The id of the inference_log row.
    Column("id", Uuid, primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("robot_id", Text, nullable=False),
    Column("robot_type", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("episode_id", Text),
    #: The embodiment's: {"min": [x, y, z], "max": [x, y, z], "unit"}; null where its card has none.
    Column("workspace_bounds", JSONB),
    #: bright, normal, dim, dark or unknown, from the mean luminance of the first image.
    Column("lighting", Text, nullable=False),
    #: morning, afternoon, evening or night, UTC.
    Column("time_of_day", Text, nullable=False),
    #: lab, warehouse, factory, outdoor, home, office, hospital, retail or other; null: not stated.
    Column("environment_type", Text),
    #: Of the task: by feedback, else by the episode's end; null: not judged.
    Column("success", Boolean),
    #: CLIP ViT-B/32 of the first image, unit length; null where none was computed.
    Column("image_embedding", Vector(IMAGE_EMBEDDING_DIM)),
    Column("image_model", Text),
    #: Broker's append time of the request.
    Column("created_at", DateTime(timezone=True), nullable=False),
    Index("context_metadata_by_customer", "customer_id", text("created_at DESC")),
    Index("context_metadata_by_episode", "customer_id", "episode_id"),
    Index("context_metadata_by_request", "customer_id", "request_id"),
    _nearest("context_metadata_by_embedding", "image_embedding"),
)

#: Embeddings whose inference_log row has not come yet: the sink merges them when it does.
pending_embeddings = Table(
    "pending_embeddings",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("instruction_embedding", Vector(INSTRUCTION_EMBEDDING_DIM)),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Index("pending_embeddings_by_time", "created_at"),
)

#: What each customer allows now; a copy of vla.consent.v1, which decides.
customer_data_consent = Table(
    "customer_data_consent",
    metadata,
    Column("customer_id", Text, primary_key=True),
    Column("tier", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("consented_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True)),
    Column("can_store_images", Boolean, nullable=False),
    Column("can_store_embeddings", Boolean, nullable=False),
    Column("can_use_for_training", Boolean, nullable=False),
    #: none, partial or full; null: what is set for the installation.
    Column("anonymization_level", Text),
    #: Requests appended up to then are erased.
    Column("erased_before", DateTime(timezone=True)),
    Column("updated_at", DateTime(timezone=True), nullable=False),
)

#: Every change of consent, in the order of the log.
consent_audit = Table(
    "consent_audit",
    metadata,
    #: Offset of the record in vla.consent.v1, which has one partition.
    Column("log_offset", BigInteger, primary_key=True, autoincrement=False),
    Column("customer_id", Text, nullable=False),
    #: set, erase or delete
    Column("action", Text, nullable=False),
    Column("tier", Text),
    Column("version", Integer),
    Column("expires_at", DateTime(timezone=True)),
    Column("anonymization_level", Text),
    Column("who", Text, nullable=False),
    Column("origin", Text, nullable=False),
    #: Broker's append time of the record.
    Column("changed_at", DateTime(timezone=True), nullable=False),
    Index("consent_audit_by_customer", "customer_id", "log_offset"),
)

#: One row for each feedback that was given.
feedback = Table(
    "feedback",
    metadata,
    #: feedback_id of the record.
    Column("id", Uuid, primary_key=True),
    #: The id of the inference_log row.
    Column("inference_id", Uuid, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("customer_id", Text, nullable=False),
    Column("robot_id", Text, nullable=False),
    #: success_rating, safety_rating, action_correction or failure_report
    Column("feedback_type", Text, nullable=False),
    Column("success", Boolean),
    #: 1..5, 5 is best.
    Column("rating", Integer),
    #: {"horizon", "dim", "values"}, in the units of the chunk.
    Column("corrected_action", JSONB),
    Column("failure_type", Text),
    Column("comment", Text),
    Column("created_by", Text, nullable=False),
    #: Broker's append time of the record.
    Column("created_at", DateTime(timezone=True), nullable=False),
    Index("feedback_by_inference", "inference_id"),
    Index("feedback_by_customer", "customer_id", text("created_at DESC")),
)

#: One row for each episode that a start or an end was heard of.
episodes = Table(
    "episodes",
    metadata,
    Column("customer_id", Text, primary_key=True),
    Column("robot_id", Text, primary_key=True),
    Column("episode_id", Text, primary_key=True),
    Column("robot_type", Text, nullable=False),
    Column("task", Text),
    Column("environment_type", Text),
    #: Null: not judged.
    Column("success", Boolean),
    #: Broker's append times of the start and the end; null where none came.
    Column("started_at", DateTime(timezone=True)),
    Column("ended_at", DateTime(timezone=True)),
    Index("episodes_by_time", "customer_id", text("started_at DESC")),
)

#: How far each run of the ETL got: a run that was killed goes on where it ended.
etl_runs = Table(
    "etl_runs",
    metadata,
    Column("date", Date, primary_key=True),
    Column("pipeline", Text, primary_key=True),
    #: running, done or failed
    Column("state", Text, nullable=False),
    Column("rows_read", BigInteger, nullable=False, server_default=text("0")),
    Column("rows_written", BigInteger, nullable=False, server_default=text("0")),
    Column("error", Text),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    Column("finished_at", DateTime(timezone=True)),
)

#: What customers asked to be erased, and how far that is. Requests come from the API, the role `etl` does them.
erasures = Table(
    "erasures",
    metadata,
    Column("customer_id", Text, primary_key=True),
    #: Requests appended up to then go.
    Column("erased_before", DateTime(timezone=True), nullable=False),
    #: pending or done
    Column("state", Text, nullable=False),
    #: {"postgres": {table: rows}, "lake": {dataset: rows}, "redis": entries} of the last time that it was done.
    Column("removed", JSONB),
    Column("requested_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    Column("finished_at", DateTime(timezone=True)),
)
