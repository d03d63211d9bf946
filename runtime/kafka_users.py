"""Users of a Kafka cluster: SCRAM credentials and what each user may take of the brokers."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined] # re-exported without __all__
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)

from runtime.errors import Fatal
from runtime.kafka import ssl_context
from runtime.settings import Settings
from schemas.quotas import Quota

_TIMEOUT_S = 30
#: The password is random and long: more rounds would make each connection dearer and no guess less likely.
_ITERATIONS = 4096


def new_password() -> str:
    return secrets.token_urlsafe(24)


def set_password(admin: AdminClient, user: str, password: str) -> None:
    """Make a user, or give it another password. Raises Fatal."""
    info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, _ITERATIONS)
    _altered(admin, UserScramCredentialUpsertion(user, info, password.encode()))


def delete_user(admin: AdminClient, user: str) -> None:
    """From now on nobody gets in as this user; connections that are open stay until their ACLs go. Raises Fatal."""
    try:
        _altered(admin, UserScramCredentialDeletion(user, ScramMechanism.SCRAM_SHA_512))
    except KafkaException as error:
        if error.args[0].name() != "RESOURCE_NOT_FOUND":
            raise


def _altered(admin: AdminClient, alteration: Any) -> None:
    for future in admin.alter_user_scram_credentials([alteration]).values():
        try:
            future.result(timeout=_TIMEOUT_S)
        except KafkaException as error:
            reason: KafkaError = error.args[0]
            if reason.name() == "RESOURCE_NOT_FOUND":
                raise
            raise Fatal(f"Kafka does not let us change its users: {reason.str()}") from error


def set_quota(settings: Settings, user: str, quota: Quota | None) -> None:
    """Set what a user may take; None lifts the limits. Raises Fatal.

    AlterClientQuotas (KIP-546) is in no Python client, so this sends the request by aiokafka's.
    """
    values = {
        "producer_byte_rate": quota.producer_bytes_per_s if quota is not None else None,
        "request_percentage": quota.request_percent if quota is not None else None,
    }
    error = asyncio.run(_alter_quota(settings, user, values))
    if error:
        raise Fatal(f"Kafka does not let us set the quota of {user}: {error}")


async def _alter_quota(settings: Settings, user: str, values: dict[str, float | None]) -> str:
    """The broker's complaint, or an empty text."""
    from aiokafka.client import AIOKafkaClient

    from runtime.quota_request import AlterClientQuotasRequest

    client = AIOKafkaClient(
        bootstrap_servers=settings.kafka_bootstrap_servers.split(","),
        security_protocol=settings.kafka_security_protocol,
        ssl_context=ssl_context(settings),
        sasl_mechanism=settings.kafka_sasl_mechanism,
        sasl_plain_username=settings.kafka_sasl_username or None,
        sasl_plain_password=settings.kafka_sasl_password.get_secret_value() or None,
    )
    await client.bootstrap()
    try:
        node_id = client.get_random_node()
        await client.ready(node_id)
        response = await client.send(node_id, AlterClientQuotasRequest(user, values))
    finally:
        await client.close()
    return "; ".join(message or f"error {code}" for code, message, _ in response.entries if code)
