"""What the embedded stack runs beside the servers: the set-up steps, then the roles in the order of the flow."""

from __future__ import annotations

import http.client
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from runtime.stack.component import Command, Component, Say
from runtime.stack.layout import LOOPBACK, Layout


def vlastream(*arguments: str) -> tuple[str, ...]:
    """The command line of `vlastream ARGUMENTS...` under this interpreter."""
    return (sys.executable, "-m", "runtime.cli", *arguments)


@dataclass(frozen=True)
class Role:
    """A kind of process, of which `count` run."""

    name: str
    argv: Sequence[str]
    count: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    #: The API serves people and metrics on one port; all others have a port for metrics only.
    serves_api: bool = False

    @property
    def user(self) -> str:
        """Its Kafka user, where Kafka has users (schemas/access.py)."""
        return self.name.replace(" ", "-")


@dataclass(frozen=True)
class SetupStep:
    """A command that runs to its end before the first role starts."""

    name: str
    argv: Sequence[str]
    #: Name of a secret that it prints as its last word; it is run only as long as that secret is not known.
    makes_secret: str | None = None
    #: What is added to the command line on a secure stack.
    secure_argv: Sequence[str] = ()


#: What a request goes through, and what writes it down.
ROBOT_PATH = (
    Role("api", vlastream("api"), serves_api=True),
    Role("gate", vlastream("gate"), count=2),
    Role("gpu", vlastream("gpu"), env={"OMP_NUM_THREADS": "1"}),
    Role("sink postgres", vlastream("sink", "postgres")),
    Role("sink parquet", vlastream("sink", "parquet")),
)
#: The same, and what works on what was written down.
ROLES = (
    *ROBOT_PATH,
    Role("embedder", vlastream("embedder"), env={"OMP_NUM_THREADS": "1"}),
    Role("etl", vlastream("etl", "serve")),
)


def setup_steps(tier: str = "pro") -> tuple[SetupStep, ...]:
    """Topics, tables, and a key of a customer of this tier."""
    key = vlastream("keys", "create", "--email", "demo@example.org", "--tier", tier)
    return (
        SetupStep("topics", vlastream("topics", "apply"), secure_argv=("--acls",)),
        SetupStep("database", vlastream("db", "upgrade")),
        SetupStep("api key", key, makes_secret="api_key"),
    )


class RoleProcess(Component):
    """One process of a role, on a port of its own."""

    #: A role survives SIGKILL by design; without servers and supervisor there is nothing that it could finish.
    orphan_signal = signal.SIGKILL

    def __init__(self, layout: Layout, role: Role, instance: int, env: Mapping[str, str], api_port: int) -> None:
        self.name = f"{re.sub(r'[^a-z0-9]+', '-', role.name)}-{instance}"
        self.role = role.name
        self._argv = role.argv
        self._folder = layout.data(self.name)
        self._port = layout.port(self.name, preferred=api_port if role.serves_api else None)
        self.url = f"http://{LOOPBACK}:{self._port}"
        self.metrics_url = f"{self.url}/metrics"
        self._env = {
            **env,
            "HOST": LOOPBACK,
            "PORT" if role.serves_api else "METRICS_PORT": str(self._port),
            "ROLE_INSTANCE": str(instance),
            "DATA_DIR": str(self._folder),
            **role.env,
        }

    def prepare(self, say: Say) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def command(self) -> Command:
        return Command(self._argv, env=self._env)

    def is_ready(self) -> bool:
        return answers_ready(self._port)


def answers_ready(port: int, host: str = LOOPBACK) -> bool:
    """Whether GET /readyz on this port is answered with 200 within a second."""
    connection = http.client.HTTPConnection(host, port, timeout=1)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
