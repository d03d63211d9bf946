"""A real broker with TLS, users and Kafka's authorizer, started once for all tests that want one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from runtime.settings import Settings
from runtime.stack.kafka import QUICK_START, Kafka
from runtime.stack.layout import Layout
from runtime.stack.security import StackSecurity
from runtime.topic_admin import apply_all
from tests.cards import write_cards
from tests.embedded import running

#: The fleets that this broker begins with; what one of them tries is done to the other.
NORTH, SOUTH = "north", "south"
DEPLOYMENT = "test-model-a"


@dataclass(frozen=True)
class SecureKafka:
    admin: Settings
    security: StackSecurity

    def as_user(self, user: str, password: str | None = None) -> Settings:
        """Settings of a process that says it is this user."""
        identity = self.security.kafka_settings(user) if password is None else {}
        changed = {"kafka_sasl_username": user, "kafka_sasl_password": password or identity["kafka_sasl_password"]}
        return Settings.model_validate({**self.admin.model_dump(), **changed})


@pytest.fixture(scope="session")
def secure_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    folder = tmp_path_factory.mktemp("secure")
    layout = Layout(folder / "servers")
    layout.create()
    security = StackSecurity(layout, (NORTH, SOUTH))
    broker = Kafka(layout, QUICK_START, security)
    with running(broker, layout):
        admin = Settings.model_validate(
            {
                "kafka_bootstrap_servers": broker.bootstrap,
                "cards_dir": write_cards(folder / "cards"),
                "fleets": f"{NORTH},{SOUTH}",
                "stack_file": folder / "no-stack.json",
                **security.kafka_settings("admin"),
            }
        )
        apply_all(admin, acls=True)
        yield SecureKafka(admin, security)
