"""Each embedded server does its job, and comes back from a kill with its data at its port."""

from __future__ import annotations

import os
import uuid
from typing import Any

import boto3
import psutil
import psycopg
import pytest
import redis
from botocore.config import Config
from botocore.exceptions import ClientError
from confluent_kafka import Consumer, Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from runtime.stack.kafka import QUICK_START, Kafka
from runtime.stack.layout import Layout
from runtime.stack.postgres import Postgres
from runtime.stack.s3 import S3, S3Settings
from runtime.stack.valkey import Valkey
from tests.embedded import running

pytestmark = pytest.mark.kafka


def _create_topic(bootstrap: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})  # the result comes only while the client lives
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(timeout=10)


def _produce(producer: Producer, topic: str, value: bytes) -> None:
    producer.produce(topic, value, key=b"robot-1", headers={"request_id": b"r1"})
    assert producer.flush(20) == 0


def _consume(bootstrap: str, topic: str, count: int) -> list[Message]:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"test-{uuid.uuid4()}",
            "auto.offset.reset": "earliest",
            "session.timeout.ms": 3000,
        }
    )
    consumer.subscribe([topic])
    try:
        messages: list[Message] = []
        while len(messages) < count:
            message = consumer.poll(20)
            assert message is not None, f"only {len(messages)} of {count} came"
            assert message.error() is None
            messages.append(message)
        return messages
    finally:
        consumer.close()


def test_kafka_delivers_what_was_produced_with_its_headers(kafka_bootstrap: str) -> None:
    topic = f"t-{uuid.uuid4()}"
    _create_topic(kafka_bootstrap, topic)
    _produce(Producer({"bootstrap.servers": kafka_bootstrap}), topic, b"frame")
    (message,) = _consume(kafka_bootstrap, topic, 1)
    assert (message.key(), message.value()) == (b"robot-1", b"frame")
    assert message.headers() == [("request_id", b"r1")]


def test_kafka_creates_no_topic_by_itself(kafka_bootstrap: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka_bootstrap})
    topic = f"t-{uuid.uuid4()}"
    admin.list_topics(topic=topic, timeout=10)
    assert topic not in admin.list_topics(timeout=10).topics


def test_kafka_killed_comes_back_with_its_records_for_clients_that_stayed(own_layout: Layout) -> None:
    kafka = Kafka(own_layout, QUICK_START)
    with running(kafka, own_layout) as server:
        _create_topic(kafka.bootstrap, "frames")
        producer = Producer({"bootstrap.servers": kafka.bootstrap, "enable.idempotence": True})
        _produce(producer, "frames", b"before")
        server.kill()
        server.start()
        _produce(producer, "frames", b"after")
        assert [m.value() for m in _consume(kafka.bootstrap, "frames", 2)] == [b"before", b"after"]


def test_postgres_finds_the_nearest_vector(fresh_database: str) -> None:
    with psycopg.connect(fresh_database) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("CREATE TABLE scene (name text, embedding vector(3))")
        connection.execute("INSERT INTO scene VALUES ('cup', '[1,0,0]'), ('cube', '[0,1,0]')")
        row = connection.execute("SELECT name FROM scene ORDER BY embedding <-> '[0,0.9,0.1]' LIMIT 1").fetchone()
    assert row == ("cube",)


@pytest.mark.parametrize("_attempt", [1, 2])
def test_a_fresh_database_is_empty(fresh_database: str, _attempt: int) -> None:
    with psycopg.connect(fresh_database) as connection:
        connection.execute("CREATE TABLE left_over (n int)")


def test_postgres_refuses_a_wrong_password(postgres_dsn: str) -> None:
    user_and_password = postgres_dsn.split("//")[1].split("@")[0]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres_dsn.replace(user_and_password, "vlastream:guess"))


def test_postgres_killed_comes_back_with_what_was_committed(own_layout: Layout) -> None:
    postgres = Postgres(own_layout)
    with running(postgres, own_layout) as server:
        with psycopg.connect(postgres.dsn) as connection:
            connection.execute("CREATE TABLE kept (n int)")
            connection.execute("INSERT INTO kept VALUES (7)")
        server.kill()
        server.start()
        with psycopg.connect(postgres.dsn) as connection:
            assert connection.execute("SELECT n FROM kept").fetchone() == (7,)


def test_postgres_starts_though_another_program_has_its_old_process_id(own_layout: Layout) -> None:
    postgres = Postgres(own_layout)
    with running(postgres, own_layout) as server:
        lock = own_layout.data("postgres") / "postmaster.pid"
        text = lock.read_text()
        children = psutil.Process(server.pid).children()
        server.kill()
        _, left = psutil.wait_procs(children, timeout=10)
        assert left == []
        lock.write_text(text.replace(str(server.pid), str(os.getpid()), 1))
        server.start()
        assert postgres.is_ready()


def test_valkey_sets_and_gets(valkey_url: str) -> None:
    with redis.Redis.from_url(valkey_url) as client:
        assert client.set("test:stack:key", b"value", ex=60)
        assert client.get("test:stack:key") == b"value"


def test_valkey_killed_comes_back_with_what_was_set(own_layout: Layout) -> None:
    valkey = Valkey(own_layout)
    with running(valkey, own_layout) as server:
        with redis.Redis.from_url(valkey.url) as client:
            client.set("kept", b"1")
        server.kill()
        server.start()
        with redis.Redis.from_url(valkey.url) as client:
            assert client.get("kept") == b"1"


def _s3(settings: S3Settings) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=settings.endpoint,
        aws_access_key_id=settings.access_key,
        aws_secret_access_key=settings.secret_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )


def test_s3_keeps_the_first_object_when_a_second_is_put_if_none_match(s3_settings: S3Settings) -> None:
    client = _s3(s3_settings)
    key = f"{uuid.uuid4()}/part.parquet"
    client.put_object(Bucket=s3_settings.bucket, Key=key, Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError) as refused:
        client.put_object(Bucket=s3_settings.bucket, Key=key, Body=b"second", IfNoneMatch="*")
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    assert client.get_object(Bucket=s3_settings.bucket, Key=key)["Body"].read() == b"first"


def test_s3_refuses_a_wrong_secret(s3_settings: S3Settings) -> None:
    settings = S3Settings(s3_settings.endpoint, s3_settings.bucket, s3_settings.access_key, "guess")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        _s3(settings).list_objects_v2(Bucket=settings.bucket)


def test_s3_killed_comes_back_with_its_objects(own_layout: Layout) -> None:
    s3 = S3(own_layout)
    with running(s3, own_layout) as server:
        _s3(s3.settings).put_object(Bucket=s3.settings.bucket, Key="kept", Body=b"1")
        server.kill()
        server.start()
        assert _s3(s3.settings).get_object(Bucket=s3.settings.bucket, Key="kept")["Body"].read() == b"1"
