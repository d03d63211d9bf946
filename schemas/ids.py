"""Deterministic ids: what makes a repeat harmless."""

from __future__ import annotations

import hashlib
import uuid

from schemas.headers import Source
from schemas.messages import InferenceRequest

#: Namespace of every uuid5 of the project.
NAMESPACE = uuid.UUID("6b1f7a0e-94d8-5d1c-9f0b-6d1c7b1f2a55")


def row_id(customer_id: str, robot_id: str, request_id: str, source: Source) -> str:
    """Id of a request's row: identity and source record, so that an id used again later is another row."""
    return str(uuid.uuid5(NAMESPACE, "\x1f".join((customer_id, robot_id, request_id, str(source)))))


def result_id(row: str, deployment: str) -> str:
    return str(uuid.uuid5(NAMESPACE, f"{row}\x1f{deployment}"))


def identity(customer_id: str, robot_id: str, request_id: str) -> str:
    return "\x1f".join((customer_id, robot_id, request_id))


def content_digest(request: InferenceRequest) -> bytes:
    """16 bytes over everything that makes two requests the same.

    Left out are the request id, the robot's clock and the time to live: a retry has less time left than the
    first try had. Numbers are hashed as their bytes, so that NaN equals itself.
    """
    content = InferenceRequest()
    content.CopyFrom(request)
    content.request_id = ""
    content.captured_at_ms = 0
    content.ttl_ms = 0
    return hashlib.blake2b(content.SerializeToString(deterministic=True), digest_size=16).digest()


def default_seed(request_id: str) -> int:
    """Seed of a request that names none, 0..2**63-1, from its id."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest(), "big") >> 1


def fraction(text: str) -> float:
    """A stable hash of text in [0, 1): routes a robot to one of several deployments."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def murmur2(data: bytes) -> int:
    """Murmur2 as Kafka's Java client hashes keys (org.apache.kafka.common.utils.Utils), unsigned 32 bits."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = (0x9747B28C ^ len(data)) & mask
    whole = len(data) & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    tail = data[whole:]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """The partition that `murmur2_random` gives a key."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def customer_named(text: str) -> str:
    """The id of a customer as people name them: by their e-mail address, by their id, or by the name of a fleet."""
    return customer_id_of_email(text) if "@" in text else text


def customer_id_of_email(address: str) -> str:
    """One address is one customer, however it is capitalised."""
    return str(uuid.uuid5(NAMESPACE, f"customer\x1f{address.strip().lower()}"))
