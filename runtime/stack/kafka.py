"""Apache Kafka as one KRaft node: broker and controller in one JVM."""

from __future__ import annotations

import socket
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.stack.certificates import BROKER_NAME
from runtime.stack.component import Command, Component, Say
from runtime.stack.jars import jars, java
from runtime.stack.layout import LOOPBACK, Layout, whole_or_absent
from runtime.stack.security import BROKER_USER, MECHANISM, StackSecurity
from schemas.access import ADMIN_USER

COORDINATES = "org.apache.kafka:kafka_2.13:4.4.0"
#: Kafka logs through slf4j and leaves the binding to log4j to its distribution. Resolved by itself: resolved together,
#: its bill of materials overrules versions of Kafka's own jars.
LOG_BINDING = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.5"
#: For short runs: a quarter less processor time to start, a slower broker afterwards.
QUICK_START = ("-XX:TieredStopAtLevel=1",)

_LOGGING = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %c{1}: %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = info
"""


class Kafka(Component):
    name = role = "kafka"

    def __init__(self, layout: Layout, jvm_options: Sequence[str] = (), security: StackSecurity | None = None) -> None:
        """security: with it clients come by TLS and SCRAM, and may do what their ACLs say; without it, anything."""
        self._layout = layout
        self._security = security
        self._jvm_options = jvm_options
        self._port = layout.port("kafka")
        self._controller_port = layout.port("kafka-controller")
        self._data = layout.data("kafka")
        self._jars: list[Path] = []

    @property
    def bootstrap(self) -> str:
        return f"{LOOPBACK}:{self._port}"

    def prepare(self, say: Say) -> None:
        self._jars = [*jars(COORDINATES, say), *jars(LOG_BINDING, say, alone=True)]
        if self._security is not None:
            self._security.prepare()
        self._write_properties(self._properties_file, self._data)
        self._logging_file.write_text(_LOGGING)
        if not self._data.exists():
            with whole_or_absent(self._data) as folder:
                format_file = self._layout.data("kafka-format.properties")
                self._write_properties(format_file, folder)
                cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
                arguments = ["format"]
                if self._security is not None:
                    # They must stand in the very first record: no user could log in to make the first one.
                    for user in self._security.users:
                        credentials = f"[name={user},password={self._security.password(user)}]"
                        arguments += ["--add-scram", f"{MECHANISM}={credentials}"]
                # One word: an id may begin with a dash. Last, as what a failure shows of this is its end.
                arguments += [f"--cluster-id={cluster_id}", "--config", str(format_file)]
                self._java("kafka.tools.StorageTool", arguments, [*QUICK_START, "-Xmx128m"]).run(
                    log=self._layout.log("kafka")
                )
                format_file.unlink()

    def command(self) -> Command:
        return self._java("kafka.Kafka", [str(self._properties_file)], [*self._jvm_options, "-Xmx512m"])

    def is_ready(self) -> bool:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        try:  # a client that is refused would log it
            socket.create_connection((LOOPBACK, self._port), timeout=0.5).close()
        except OSError:
            return False
        try:
            admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 2, **self._admin_security()})
            return len(admin.list_topics(timeout=1).brokers) == 1
        except KafkaException:
            return False

    def _admin_security(self) -> dict[str, Any]:
        if self._security is None:
            return {}
        from runtime.kafka import security_config
        from runtime.settings import Settings

        return security_config(Settings.model_validate(self._security.kafka_settings(ADMIN_USER)))

    def _write_properties(self, file: Path, log_dirs: Path) -> None:
        # They may hold a password.
        file.touch(mode=0o600)
        listeners = self._plain_listeners() if self._security is None else self._secure_listeners(self._security)
        properties = {**listeners, **self._properties(log_dirs)}
        file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))

    def _plain_listeners(self) -> dict[str, object]:
        return {
            "listeners": f"PLAINTEXT://{LOOPBACK}:{self._port},CONTROLLER://{LOOPBACK}:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{self._port}",
        }

    def _secure_listeners(self, security: StackSecurity) -> dict[str, object]:
        login = "org.apache.kafka.common.security.scram.ScramLoginModule required"
        own = f'username="{BROKER_USER}" password="{security.password(BROKER_USER)}"'
        users = (f"User:{ADMIN_USER}", f"User:{BROKER_USER}", f"User:CN={BROKER_NAME}")
        return {
            "listeners": f"CLIENTS://{LOOPBACK}:{self._port},CONTROLLER://{LOOPBACK}:{self._controller_port}",
            "advertised.listeners": f"CLIENTS://{LOOPBACK}:{self._port}",
            "listener.security.protocol.map": "CLIENTS:SASL_SSL,CONTROLLER:SSL",
            "inter.broker.listener.name": "CLIENTS",
            "sasl.enabled.mechanisms": MECHANISM,
            "sasl.mechanism.inter.broker.protocol": MECHANISM,
            f"listener.name.clients.{MECHANISM.lower()}.sasl.jaas.config": f"{login} {own};",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": security.certificates.chain_and_key,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": security.certificates.ca,
            # Clients prove themselves by SCRAM. The controller hears only who has the broker's certificate.
            "listener.name.controller.ssl.client.auth": "required",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": ";".join(users),
            "allow.everyone.if.no.acl.found": "false",
        }

    @property
    def _properties_file(self) -> Path:
        return self._layout.data("kafka.properties")

    @property
    def _logging_file(self) -> Path:
        return self._layout.data("kafka-log4j2.properties")

    def _java(self, main: str, arguments: Sequence[str], options: Sequence[str]) -> Command:
        return Command(
            [
                java(),
                *options,
                "-XX:+UseSerialGC",
                "-XX:+ExitOnOutOfMemoryError",
                "-Djava.awt.headless=true",
                f"-Dlog4j2.configurationFile={self._logging_file}",
                "-cp",
                ":".join(map(str, self._jars)),
                main,
                *arguments,
            ]
        )

    def _properties(self, log_dirs: Path) -> dict[str, object]:
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            # A fixed voter, not one stored at formatting: the port may be another one at the next start.
            "controller.quorum.voters": f"1@{LOOPBACK}:{self._controller_port}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": log_dirs,
            "auto.create.topics.enable": "false",
            "message.max.bytes": 2 * 1024 * 1024,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 2000,
            "offsets.topic.num.partitions": 4,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "num.network.threads": 2,
            "num.io.threads": 4,
            "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
            # After a kill the controller takes the broker back only when its old session has ended.
            "broker.session.timeout.ms": 2000,
            "broker.heartbeat.interval.ms": 500,
            "controlled.shutdown.enable": "false",
        }
