"""Limits of customers, scopes of keys, usage, the audit log and the outbox."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ALL = "{inference,read,control,data,keys}"
_TRAIL = """
    CREATE VIEW audit_trail AS
    SELECT at, customer_id, actor, action, target, origin, details FROM audit_log
    UNION ALL
    SELECT changed_at, customer_id, who, 'consent.' || action, 'customer:' || customer_id, origin,
           jsonb_strip_nulls(jsonb_build_object(
               'tier', tier, 'version', version::text, 'expires_at', expires_at::text,
               'anonymization_level', anonymization_level))
    FROM consent_audit
"""


def upgrade() -> None:
    op.add_column("customers", sa.Column("max_robots", sa.Integer(), nullable=True))
    op.add_column("customers", sa.Column("max_payload_bytes", sa.Integer(), nullable=True))
    # Counted in usage_daily, from the log.
    op.drop_column("customers", "monthly_usage")
    # Until now `inference` stood for everything that a customer does.
    op.execute(f"UPDATE api_keys SET scopes = '{_ALL}' WHERE scopes = '{{inference}}'")
    op.alter_column("api_keys", "scopes", server_default=sa.text(f"'{_ALL}'::text[]"))
    op.create_index("api_keys_by_prefix", "api_keys", ["prefix"])
    op.create_table(
        "usage_daily",
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("date", sa.Date(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("inferences", sa.BigInteger(), nullable=False),
        sa.Column("successful", sa.BigInteger(), nullable=False),
        sa.Column("safety_rejected", sa.BigInteger(), nullable=False),
        sa.Column("rate_limited", sa.BigInteger(), nullable=False),
        sa.Column("gpu_ms", sa.Double(), nullable=False),
        sa.Column("robots", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("customer_id", "date", name="usage_daily_pkey"),
    )
    op.create_table(
        "usage_robots",
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("date", sa.Date(), nullable=False),
        sa.Column("robot_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("customer_id", "date", "robot_id", name="usage_robots_pkey"),
    )
    # What the log holds already was used too.
    op.execute(
        """
        INSERT INTO usage_robots SELECT DISTINCT customer_id, (created_at AT TIME ZONE 'UTC')::date, robot_id
        FROM inference_log WHERE latency_gpu_ms IS NOT NULL
        """
    )
    op.execute(
        """
        INSERT INTO usage_daily
        SELECT customer_id, (created_at AT TIME ZONE 'UTC')::date, count(*), count(latency_gpu_ms),
               count(*) FILTER (WHERE status = 'success'), count(*) FILTER (WHERE status = 'safety_rejected'),
               count(*) FILTER (WHERE status = 'rate_limited'), coalesce(sum(latency_gpu_ms), 0),
               count(DISTINCT robot_id) FILTER (WHERE latency_gpu_ms IS NOT NULL)
        FROM inference_log GROUP BY 1, 2
        """
    )
    op.create_table(
        "audit_log",
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("log_offset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=True),
        sa.Column("customer_id", sa.Text(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("details", postgresql.JSONB(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("topic", "partition", "log_offset", name="audit_log_pkey"),
        sa.UniqueConstraint("event_id", name="audit_log_event_id_key"),
    )
    op.create_index("audit_log_by_time", "audit_log", [sa.literal_column("at DESC")])
    op.create_index("audit_log_by_customer", "audit_log", ["customer_id", sa.literal_column("at DESC")])
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="outbox_pkey"),
    )
    op.execute(_TRAIL)


def downgrade() -> None:
    op.execute("DROP VIEW audit_trail")
    for name in ("outbox", "audit_log", "usage_robots", "usage_daily"):
        op.drop_table(name)
    op.drop_index("api_keys_by_prefix", table_name="api_keys")
    op.alter_column("api_keys", "scopes", server_default=sa.text("'{inference}'::text[]"))
    op.add_column("customers", sa.Column("monthly_usage", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.drop_column("customers", "max_payload_bytes")
    op.drop_column("customers", "max_robots")
