"""Analytics, context, embeddings, consent, feedback, episodes; usage views; instructions that consent leaves out."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import Vector
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TABLES = [
    "robot_performance_metrics",
    "instruction_analytics",
    "context_metadata",
    "pending_embeddings",
    "customer_data_consent",
    "consent_audit",
    "feedback",
    "episodes",
    "etl_runs",
    "erasures",
]

#: View -> its query. Refreshed by the ETL, concurrently: that takes a unique index.
_VIEWS = {
    "daily_usage": (
        """
        SELECT customer_id, robot_type, model, (created_at AT TIME ZONE 'UTC')::date AS date,
               count(*) AS total_inferences,
               count(*) FILTER (WHERE status = 'success') AS successful_inferences,
               count(*) FILTER (WHERE status = 'safety_rejected') AS safety_rejections,
               count(*) FILTER (WHERE status NOT IN ('success', 'safety_rejected')) AS failed_inferences,
               count(DISTINCT robot_id) AS robots,
               avg(latency_total_ms) FILTER (WHERE status = 'success') AS avg_latency_ms,
               percentile_cont(0.95) WITHIN GROUP (ORDER BY latency_total_ms)
                   FILTER (WHERE status = 'success') AS p95_latency_ms,
               coalesce(sum(latency_gpu_ms), 0) AS gpu_ms
        FROM inference_log GROUP BY 1, 2, 3, 4
        """,
        "customer_id, robot_type, model, date",
    ),
    "monthly_usage": (
        """
        SELECT customer_id, date_trunc('month', created_at AT TIME ZONE 'UTC')::date AS month,
               count(*) AS total_inferences,
               count(*) FILTER (WHERE status = 'success') AS successful_inferences,
               count(*) FILTER (WHERE status = 'safety_rejected') AS safety_rejections,
               count(DISTINCT robot_id) AS robots,
               coalesce(sum(latency_gpu_ms), 0) AS gpu_ms
        FROM inference_log GROUP BY 1, 2
        """,
        "customer_id, month",
    ),
    "safety_trend": (
        """
        SELECT l.customer_id, l.robot_type, (l.created_at AT TIME ZONE 'UTC')::date AS date,
               avg(l.safety_score) AS avg_safety_score, min(l.safety_score) AS min_safety_score,
               count(l.safety_score) AS checked,
               count(i.id) AS incidents,
               count(*) FILTER (WHERE i.severity = 'critical') AS critical,
               count(*) FILTER (WHERE i.severity = 'high') AS high,
               count(*) FILTER (WHERE i.severity = 'medium') AS medium,
               count(*) FILTER (WHERE i.severity = 'low') AS low
        FROM inference_log l LEFT JOIN safety_incidents i ON i.id = l.id
        GROUP BY 1, 2, 3
        """,
        "customer_id, robot_type, date",
    ),
}


def upgrade() -> None:
    op.create_table(
        "consent_audit",
        sa.Column("log_offset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("anonymization_level", sa.Text(), nullable=True),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("log_offset", name=("consent_audit_pkey")),
    )
    op.create_index("consent_audit_by_customer", "consent_audit", ["customer_id", "log_offset"], unique=False)
    op.create_table(
        "context_metadata",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("robot_id", sa.Text(), nullable=False),
        sa.Column("robot_type", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("episode_id", sa.Text(), nullable=True),
        sa.Column("workspace_bounds", postgresql.JSONB(), nullable=True),
        sa.Column("lighting", sa.Text(), nullable=False),
        sa.Column("time_of_day", sa.Text(), nullable=False),
        sa.Column("environment_type", sa.Text(), nullable=True),
        sa.Column("success", sa.Boolean(), nullable=True),
        sa.Column("image_embedding", Vector(512), nullable=True),
        sa.Column("image_model", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=("context_metadata_pkey")),
    )
    op.create_index(
        "context_metadata_by_customer",
        "context_metadata",
        ["customer_id", sa.literal_column("created_at DESC")],
        unique=False,
    )
    op.create_index(
        "context_metadata_by_embedding",
        "context_metadata",
        ["image_embedding"],
        unique=False,
        postgresql_using="hnsw",
        postgresql_with={"m": 16, "ef_construction": 64},
        postgresql_ops={"image_embedding": "vector_cosine_ops"},
    )
    op.create_index("context_metadata_by_episode", "context_metadata", ["customer_id", "episode_id"], unique=False)
    op.create_index("context_metadata_by_request", "context_metadata", ["customer_id", "request_id"], unique=False)
    op.create_table(
        "customer_data_consent",
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("consented_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("can_store_images", sa.Boolean(), nullable=False),
        sa.Column("can_store_embeddings", sa.Boolean(), nullable=False),
        sa.Column("can_use_for_training", sa.Boolean(), nullable=False),
        sa.Column("anonymization_level", sa.Text(), nullable=True),
        sa.Column("erased_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("customer_id", name=("customer_data_consent_pkey")),
    )
    op.create_table(
        "episodes",
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("robot_id", sa.Text(), nullable=False),
        sa.Column("episode_id", sa.Text(), nullable=False),
        sa.Column("robot_type", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=True),
        sa.Column("environment_type", sa.Text(), nullable=True),
        sa.Column("success", sa.Boolean(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("customer_id", "robot_id", "episode_id", name=("episodes_pkey")),
    )
    op.create_index("episodes_by_time", "episodes", ["customer_id", sa.literal_column("started_at DESC")], unique=False)
    op.create_table(
        "erasures",
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("erased_before", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("removed", postgresql.JSONB(), nullable=True),
        sa.Column("requested_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("customer_id", name=("erasures_pkey")),
    )
    op.create_table(
        "etl_runs",
        sa.Column("date", sa.Date(), nullable=False),
        sa.Column("pipeline", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("rows_read", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("rows_written", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("date", "pipeline", name=("etl_runs_pkey")),
    )
    op.create_table(
        "feedback",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("inference_id", sa.Uuid(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("robot_id", sa.Text(), nullable=False),
        sa.Column("feedback_type", sa.Text(), nullable=False),
        sa.Column("success", sa.Boolean(), nullable=True),
        sa.Column("rating", sa.Integer(), nullable=True),
        sa.Column("corrected_action", postgresql.JSONB(), nullable=True),
        sa.Column("failure_type", sa.Text(), nullable=True),
        sa.Column("comment", sa.Text(), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=("feedback_pkey")),
    )
    op.create_index(
        "feedback_by_customer", "feedback", ["customer_id", sa.literal_column("created_at DESC")], unique=False
    )
    op.create_index("feedback_by_inference", "feedback", ["inference_id"], unique=False)
    op.create_table(
        "instruction_analytics",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("instruction_hash", sa.Text(), nullable=False),
        sa.Column("instruction", sa.Text(), nullable=False),
        sa.Column("category", sa.Text(), nullable=False),
        sa.Column("instruction_embedding", Vector(384), nullable=True),
        sa.Column("similar_to", sa.Text(), nullable=True),
        sa.Column("is_duplicate", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("total_uses", sa.BigInteger(), nullable=False),
        sa.Column("unique_customers", sa.Integer(), nullable=False),
        sa.Column("customers", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("success_rate", sa.Double(), nullable=True),
        sa.Column("avg_safety_score", sa.Double(), nullable=True),
        sa.Column("avg_latency_ms", sa.Double(), nullable=True),
        sa.Column("common_robots", postgresql.JSONB(), nullable=False),
        sa.Column("first_seen", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=("instruction_analytics_pkey")),
        sa.UniqueConstraint("instruction_hash", name=("instruction_analytics_instruction_hash_key")),
    )
    op.create_index(
        "instruction_analytics_by_customer",
        "instruction_analytics",
        ["customers"],
        unique=False,
        postgresql_using="gin",
    )
    op.create_index(
        "instruction_analytics_by_embedding",
        "instruction_analytics",
        ["instruction_embedding"],
        unique=False,
        postgresql_using="hnsw",
        postgresql_with={"m": 16, "ef_construction": 64},
        postgresql_ops={"instruction_embedding": "vector_cosine_ops"},
    )
    op.create_table(
        "pending_embeddings",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("instruction_embedding", Vector(384), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=("pending_embeddings_pkey")),
    )
    op.create_index("pending_embeddings_by_time", "pending_embeddings", ["created_at"], unique=False)
    op.create_table(
        "robot_performance_metrics",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("robot_type", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("date", sa.Date(), nullable=False),
        sa.Column("total_inferences", sa.BigInteger(), nullable=False),
        sa.Column("successful_inferences", sa.BigInteger(), nullable=False),
        sa.Column("failed_inferences", sa.BigInteger(), nullable=False),
        sa.Column("safety_rejections", sa.BigInteger(), nullable=False),
        sa.Column("success_rate", sa.Double(), nullable=False),
        sa.Column("task_success_rate", sa.Double(), nullable=True),
        sa.Column("tasks_judged", sa.BigInteger(), nullable=False),
        sa.Column("avg_latency_ms", sa.Double(), nullable=True),
        sa.Column("p50_latency_ms", sa.Double(), nullable=True),
        sa.Column("p95_latency_ms", sa.Double(), nullable=True),
        sa.Column("p99_latency_ms", sa.Double(), nullable=True),
        sa.Column("avg_safety_score", sa.Double(), nullable=True),
        sa.Column("action_statistics", postgresql.JSONB(), nullable=True),
        sa.Column("top_instructions", postgresql.JSONB(), nullable=False),
        sa.Column("failure_patterns", postgresql.JSONB(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=("robot_performance_metrics_pkey")),
        sa.UniqueConstraint(
            "customer_id", "robot_type", "model", "date", name="robot_performance_metrics_customer_type_model_date_key"
        ),
    )
    op.create_index(
        "robot_performance_metrics_by_date", "robot_performance_metrics", [sa.literal_column("date DESC")], unique=False
    )
    op.alter_column("inference_log", "instruction", existing_type=sa.TEXT(), nullable=True)
    for name, (query, key) in _VIEWS.items():
        op.execute(f"CREATE MATERIALIZED VIEW {name} AS {query}")
        op.execute(f"CREATE UNIQUE INDEX {name}_key ON {name} ({key})")


def downgrade() -> None:
    for name in _VIEWS:
        op.execute(f"DROP MATERIALIZED VIEW {name}")
    for name in reversed(_TABLES):
        op.drop_table(name)
    # What had no instruction cannot have one now.
    op.execute("UPDATE inference_log SET instruction = '' WHERE instruction IS NULL")
    op.alter_column("inference_log", "instruction", existing_type=sa.TEXT(), nullable=False)
