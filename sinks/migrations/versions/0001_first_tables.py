"""customers, api_keys, inference_log, safety_incidents and sink_marks, and the vector extension."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import Vector
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    op.create_table(
        "customers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("rpm_limit", sa.Integer(), nullable=True),
        sa.Column("rpd_limit", sa.Integer(), nullable=True),
        sa.Column("monthly_quota", sa.BigInteger(), nullable=True),
        sa.Column("monthly_usage", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("is_active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="customers_pkey"),
        sa.UniqueConstraint("email", name="customers_email_key"),
    )
    op.create_table(
        "inference_log",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("robot_id", sa.Text(), nullable=False),
        sa.Column("robot_type", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=True),
        sa.Column("model_revision", sa.Text(), nullable=True),
        sa.Column("worker_id", sa.Text(), nullable=True),
        sa.Column("batch_size", sa.Integer(), nullable=True),
        sa.Column("seed", sa.Numeric(precision=20, scale=0), nullable=True),
        sa.Column("instruction", sa.Text(), nullable=False),
        sa.Column("instruction_category", sa.Text(), nullable=True),
        sa.Column("instruction_embedding", Vector(384), nullable=True),
        sa.Column("image_shape", postgresql.ARRAY(sa.Integer()), nullable=True),
        sa.Column("image_count", sa.Integer(), nullable=False),
        sa.Column("episode_id", sa.Text(), nullable=True),
        sa.Column("step", sa.Numeric(precision=20, scale=0), nullable=False),
        sa.Column("action_vector", postgresql.ARRAY(sa.Double()), nullable=True),
        sa.Column("action_magnitude", sa.Double(), nullable=True),
        sa.Column("actions", postgresql.ARRAY(sa.REAL()), nullable=True),
        sa.Column("action_horizon", sa.Integer(), nullable=True),
        sa.Column("action_dim", sa.Integer(), nullable=True),
        sa.Column("safety_score", sa.Double(), nullable=True),
        sa.Column("safety_flags", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=True),
        sa.Column("http_status", sa.Integer(), nullable=False),
        sa.Column("validation_errors", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("latency_total_ms", sa.Double(), nullable=False),
        sa.Column("latency_queue_ms", sa.Double(), nullable=True),
        sa.Column("latency_gpu_ms", sa.Double(), nullable=True),
        sa.Column("consent_tier", sa.Text(), nullable=False),
        sa.Column("source_topic", sa.Text(), nullable=False),
        sa.Column("source_partition", sa.Integer(), nullable=False),
        sa.Column("source_offset", sa.BigInteger(), nullable=False),
        sa.Column("results_offset", sa.BigInteger(), nullable=False),
        sa.Column("outcome_partition", sa.Integer(), nullable=False),
        sa.Column("outcome_offset", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="inference_log_pkey"),
    )
    op.create_index("inference_log_by_customer", "inference_log", ["customer_id", sa.text("created_at DESC")])
    op.create_index("inference_log_by_request", "inference_log", ["customer_id", "request_id"])
    op.create_index("inference_log_by_robot", "inference_log", ["customer_id", "robot_id", sa.text("created_at DESC")])
    op.create_index("inference_log_by_time", "inference_log", [sa.text("created_at DESC")])
    op.create_table(
        "safety_incidents",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("robot_id", sa.Text(), nullable=False),
        sa.Column("robot_type", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=True),
        sa.Column("episode_id", sa.Text(), nullable=True),
        sa.Column("step", sa.Numeric(precision=20, scale=0), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("violation_type", sa.Text(), nullable=False),
        sa.Column("violation_details", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("action_taken", sa.Text(), nullable=False),
        sa.Column("original_action", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("safe_action", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("safety_score", sa.Double(), nullable=False),
        sa.Column("environment_type", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="safety_incidents_pkey"),
    )
    op.create_index("safety_incidents_by_customer", "safety_incidents", ["customer_id", sa.text("created_at DESC")])
    op.create_index("safety_incidents_by_severity", "safety_incidents", ["severity", sa.text("created_at DESC")])
    op.create_table(
        "sink_marks",
        sa.Column("sink", sa.Text(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("next_offset", sa.BigInteger(), nullable=False),
        sa.Column("results_offset", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("sink", "topic", "partition", name="sink_marks_pkey"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("key_hash", sa.Text(), nullable=False),
        sa.Column(
            "scopes", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{inference}'::text[]"), nullable=False
        ),
        sa.Column("rate_limit", sa.Integer(), nullable=True),
        sa.Column("is_active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name="api_keys_customer_id_fkey", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="api_keys_pkey"),
        sa.UniqueConstraint("key_hash", name="api_keys_key_hash_key"),
    )
    op.create_index("api_keys_by_customer", "api_keys", ["customer_id"])


def downgrade() -> None:
    op.drop_index("api_keys_by_customer", table_name="api_keys")
    op.drop_table("api_keys")
    op.drop_table("sink_marks")
    op.drop_index("safety_incidents_by_severity", table_name="safety_incidents")
    op.drop_index("safety_incidents_by_customer", table_name="safety_incidents")
    op.drop_table("safety_incidents")
    op.drop_index("inference_log_by_time", table_name="inference_log")
    op.drop_index("inference_log_by_robot", table_name="inference_log")
    op.drop_index("inference_log_by_request", table_name="inference_log")
    op.drop_index("inference_log_by_customer", table_name="inference_log")
    op.drop_table("inference_log")
    op.drop_table("customers")
