"""The tables of tenancy: what customers used, what was done, and what waits for Kafka. See runtime.tables."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Date,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from runtime.tables import metadata

#: What a customer used on one UTC day (of the broker's append time), for billing. Written by the sink in the
#: transaction of the rows themselves, so that each outcome counts once; kept when the rows are gone.
usage_daily = Table(
    "usage_daily",
    metadata,
    Column("customer_id", Text, primary_key=True),
    Column("date", Date, primary_key=True),
    #: Every request that ended, however it ended.
    Column("requests", BigInteger, nullable=False),
    #: Requests that a policy worked on, whatever the gate said of its actions afterwards.
    Column("inferences", BigInteger, nullable=False),
    Column("successful", BigInteger, nullable=False),
    Column("safety_rejected", BigInteger, nullable=False),
    #: Refused over a limit; no part of the monthly quota.
    Column("rate_limited", BigInteger, nullable=False),
    #: Time on devices, milliseconds; of a batch, this request's share is the whole batch's time.
    Column("gpu_ms", Double, nullable=False),
    #: Distinct robots that a policy worked for.
    Column("robots", Integer, nullable=False),
)

#: Which robots those were.
usage_robots = Table(
    "usage_robots",
    metadata,
    Column("customer_id", Text, primary_key=True),
    Column("date", Date, primary_key=True),
    Column("robot_id", Text, primary_key=True),
)

#: What was done, by whom, when and from where: records of vla.audit.v1, and the stops and resumes of vla.control.v1.
audit_log = Table(
    "audit_log",
    metadata,
    #: Where the record lies.
    Column("topic", Text, primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("log_offset", BigInteger, primary_key=True, autoincrement=False),
    #: Unique: a record that was written to Kafka twice is one. Null for those of vla.control.v1.
    Column("event_id", Uuid, unique=True),
    #: Whose matter it is; null: of the whole installation.
    Column("customer_id", Text),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("details", JSONB, nullable=False),
    #: When it was done; of what has no time of its own, the broker's append time.
    Column("at", DateTime(timezone=True), nullable=False),
    Index("audit_log_by_time", text("at DESC")),
    Index("audit_log_by_customer", "customer_id", text("at DESC")),
)

#: Records that belong to a change in this database and are on their way to Kafka: written in its transaction, deleted
#: once the broker has them. So neither is there without the other, whichever server is away.
outbox = Table(
    "outbox",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("topic", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("value", LargeBinary, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
)

#: A view: audit_log, and consent_audit in the same columns.
audit_trail = Table(
    "audit_trail",
    MetaData(),
    Column("at", DateTime(timezone=True)),
    Column("customer_id", Text),
    Column("actor", Text),
    Column("action", Text),
    Column("target", Text),
    Column("origin", Text),
    Column("details", JSONB),
)
